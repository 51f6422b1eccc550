// Command load sends pre-serialised requests to a gRPC server, in a closed
// loop, and prints one JSON object about it. bench/README.md says more.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

type options struct {
	target, method, mode, requests, replies string
	callers, connections, window, cores     int
	stalled                                 int
	calls                                   int64
	once                                    bool
	warmUp, duration, patience              time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.target, "target", "127.0.0.1:50051", "`address` of the server")
	flag.StringVar(&o.method, "method", "", "full `name`, /package.Service/Method")
	flag.StringVar(&o.mode, "mode", "unary", "unary, stream (from the server), bidi or follow (ListExecutions with follow)")
	flag.StringVar(&o.requests, "requests", "", "`file` of messages, each after its length (uint32, network order)")
	flag.StringVar(&o.replies, "replies", "", "`file` to keep replies in, framed likewise (unary)")
	flag.IntVar(&o.callers, "callers", 1, "callers at once (bidi, follow: streams)")
	flag.IntVar(&o.stalled, "stalled", 0, "of these, how many read nothing until all others have ended (follow)")
	flag.IntVar(&o.connections, "connections", 0, "connections they share; 0: one for one caller, else up to 4")
	flag.IntVar(&o.window, "window", 16, "unacknowledged messages a stream (bidi)")
	flag.IntVar(&o.cores, "cores", 1, "cores to run on; with one it costs less and leaves the others to the server")
	flag.Int64Var(&o.calls, "calls", 0, "exactly so many calls, without warm-up; 0: by time (follow: the last sequence)")
	flag.BoolVar(&o.once, "once", false, "send each request once and stop when they are used up")
	flag.DurationVar(&o.warmUp, "warmup", 500*time.Millisecond, "unmeasured time before")
	flag.DurationVar(&o.duration, "duration", 3*time.Second, "measured time; 0 with -once: until used up, without warm-up")
	flag.DurationVar(&o.patience, "patience", 30*time.Second, "cancel what has not ended so long after the measured time (with -calls: after the start)")
	flag.Parse()
	runtime.GOMAXPROCS(o.cores)
	var r any
	var err error
	if o.mode == "follow" {
		r, err = follow(context.Background(), o)
	} else {
		r, err = run(context.Background(), o)
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (report, error) {
	r := report{Mode: o.mode, Callers: o.callers}
	call, known := modes[o.mode]
	if !known {
		return r, fmt.Errorf("no such mode: %s", o.mode)
	}
	if o.callers < 1 || o.window < 1 {
		return r, fmt.Errorf("-callers and -window begin at 1")
	}
	if o.connections == 0 {
		o.connections = min(o.callers, 4)
	}
	timed := o.calls == 0 && o.duration > 0
	if !timed {
		o.warmUp, o.duration = 0, 0
		if o.calls == 0 && !o.once {
			return r, fmt.Errorf("without -duration and -calls it needs -once")
		}
	}
	messages, err := readRequests(o.requests)
	if err != nil {
		return r, err
	}
	var replies *os.File
	if o.replies != "" {
		if replies, err = os.Create(o.replies); err != nil {
			return r, err
		}
		defer replies.Close()
	}
	connections, err := connect(ctx, o.target, o.connections)
	if err != nil {
		return r, err
	}
	for _, conn := range connections {
		defer conn.Close()
	}

	source := &requests{messages: messages, once: o.once, limit: o.calls}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mutex sync.Mutex
	var running sync.WaitGroup
	callers := make([]*caller, o.callers)
	start := time.Now().Add(o.warmUp)
	end := start.Add(o.duration)
	// A timer, not a deadline, which would travel with every request.
	defer time.AfterFunc(time.Until(end)+o.patience, cancel).Stop()
	for i := range callers {
		c := &caller{
			conn: connections[i%len(connections)], method: o.method, requests: source,
			window: o.window, replies: replies, mutex: &mutex,
		}
		if timed {
			c.deadline = end
		}
		callers[i] = c
		running.Add(1)
		go func() { defer running.Done(); call(c, ctx) }()
	}
	time.Sleep(o.warmUp)
	cpuBefore, clockBefore := cpuSeconds(), time.Now()
	running.Wait()
	cpu, clock := cpuSeconds()-cpuBefore, time.Since(clockBefore).Seconds()

	r.Connections = o.connections
	if !timed {
		end = time.Now()
	} else if at := source.usedUp.Load(); at != 0 {
		r.UsedUp, end = true, time.Unix(0, at)
	}
	summarise(&r, callers, start, end)
	r.CPUSeconds, r.CPUPerSecond = cpu, cpu/clock
	if r.Calls > 0 {
		r.CPUMicrosCall = cpu * 1e6 / float64(r.Calls)
	}
	return r, nil
}

// connect opens n connections and waits until each is ready.
func connect(ctx context.Context, target string, n int) ([]*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	connections := make([]*grpc.ClientConn, n)
	for i := range connections {
		conn, err := grpc.NewClient("passthrough:///"+target,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{})),
			grpc.WithNoProxy(), grpc.WithDisableServiceConfig())
		if err != nil {
			return nil, err
		}
		for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
			conn.Connect() // does nothing unless idle
			if !conn.WaitForStateChange(ctx, state) {
				return nil, fmt.Errorf("%s does not answer (%s)", target, state)
			}
		}
		connections[i] = conn
	}
	return connections, nil
}
