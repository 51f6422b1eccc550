package main

import (
	"math"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// report is what goes to standard output. Calls, rates, sizes and latencies
// are those of the measured window; errors and all_calls are of the whole run,
// warm-up included.
type report struct {
	Mode          string           `json:"mode"`
	Callers       int              `json:"callers"`
	Connections   int              `json:"connections"`
	Calls         int64            `json:"calls"`
	AllCalls      int64            `json:"all_calls"`
	Errors        map[string]int64 `json:"errors"`
	FirstErrors   []string         `json:"first_errors"`
	UsedUp        bool             `json:"used_up"` // the requests ran out before the time
	Seconds       float64          `json:"seconds"`
	PerSecond     float64          `json:"per_second"`
	Latency       percentiles      `json:"latency_us"`
	First         *percentiles     `json:"first_message_us,omitempty"`
	Messages      int64            `json:"messages"`
	Bytes         int64            `json:"bytes"`
	CPUSeconds    float64          `json:"cpu_seconds"`     // of this process
	CPUPerSecond  float64          `json:"cpu_per_second"`  // 1: it kept one core busy
	CPUMicrosCall float64          `json:"cpu_us_per_call"` // of the window
}

type percentiles struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

const shownErrors = 5

// canonical names of codes; grpc-go prints its own.
var canonical = map[codes.Code]string{
	codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN",
	codes.InvalidArgument: "INVALID_ARGUMENT", codes.DeadlineExceeded: "DEADLINE_EXCEEDED",
	codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Aborted: "ABORTED",
	codes.OutOfRange: "OUT_OF_RANGE", codes.Unimplemented: "UNIMPLEMENTED",
	codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE", codes.DataLoss: "DATA_LOSS",
	codes.Unauthenticated: "UNAUTHENTICATED",
}

// summarise counts what ended from start to end.
func summarise(r *report, callers []*caller, start, end time.Time) {
	var latencies, firsts []time.Duration
	r.Errors, r.FirstErrors = map[string]int64{}, []string{}
	for _, c := range callers {
		for _, err := range c.failures {
			r.Errors[canonical[status.Code(err)]]++
			if len(r.FirstErrors) < shownErrors {
				r.FirstErrors = append(r.FirstErrors, err.Error())
			}
		}
		r.AllCalls += int64(len(c.samples))
		for _, s := range c.samples {
			if s.end.Before(start) || s.end.After(end) {
				continue
			}
			r.Calls++
			r.Messages += s.messages
			r.Bytes += s.bytes
			latencies = append(latencies, s.latency)
			if s.first > 0 {
				firsts = append(firsts, s.first)
			}
		}
	}
	r.Seconds = max(0, end.Sub(start).Seconds()) // less than 0: used up in the warm-up
	if r.Seconds > 0 {
		r.PerSecond = float64(r.Calls) / r.Seconds
	}
	r.Latency = summary(latencies)
	if len(firsts) > 0 {
		p := summary(firsts)
		r.First = &p
	}
}

// summary takes percentiles by nearest rank, from all values.
func summary(values []time.Duration) percentiles {
	if len(values) == 0 {
		return percentiles{}
	}
	slices.Sort(values)
	at := func(share float64) float64 {
		rank := int(math.Ceil(share * float64(len(values))))
		return float64(values[rank-1].Nanoseconds()) / 1000
	}
	return percentiles{P50: at(0.50), P90: at(0.90), P99: at(0.99), Max: at(1)}
}

// cpuSeconds is what this process has used so far, in user and kernel.
func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return math.NaN()
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}
