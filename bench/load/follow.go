package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// The fields that a follower looks at: ListExecutionsResponse.executions, and
// of each Execution its sequence and state.
const (
	fieldExecutions = 1
	fieldSequence   = 3
	fieldState      = 4
	unfinished      = 3
)

// followReport is what goes to standard output in follow mode.
type followReport struct {
	Followers  int      `json:"followers"`
	Stalled    int      `json:"stalled"`
	Messages   int64    `json:"messages"`
	Deliveries int64    `json:"deliveries"` // of executions, finishes included
	Finishes   int64    `json:"finishes"`
	Seconds    float64  `json:"seconds"`       // from the first message of all to the last end
	StalledFor float64  `json:"stalled_after"` // seconds those that stalled took once they read
	CPUSeconds float64  `json:"cpu_seconds"`
	Wrong      []string `json:"wrong"`

	kept    *sync.Mutex
	waiting *atomic.Int64
}

// follower checks one stream: each sequence once, in order, without a gap, and
// each execution that came unfinished once more, finished.
type follower struct {
	last               int64
	unfinished         map[int64]bool
	messages, finishes int64
}

// follow opens o.callers streams of the first request, of which the last
// o.stalled do not read until all others have ended. It prints "ready" once
// the others have had a message each.
func follow(ctx context.Context, o options) (followReport, error) {
	r := followReport{Followers: o.callers, Stalled: o.stalled, Wrong: []string{},
		kept: &sync.Mutex{}, waiting: &atomic.Int64{}}
	messages, err := readRequests(o.requests)
	if err != nil {
		return r, err
	}
	// Those that stall have a connection to themselves, whose window they fill.
	connections, err := connect(ctx, o.target, max(o.connections, 4)+1)
	if err != nil {
		return r, err
	}
	for _, conn := range connections {
		defer conn.Close()
	}
	ctx, cancel := context.WithTimeout(ctx, o.patience)
	defer cancel()
	reading, readersDone := o.callers-o.stalled, make(chan struct{})
	r.waiting.Store(int64(reading))
	ready := make(chan struct{})
	var readers, all sync.WaitGroup
	readers.Add(reading)
	all.Add(o.callers)
	for i := range o.callers {
		conn, gate, done := connections[1+i%(len(connections)-1)], (<-chan struct{})(nil), readers.Done
		if i >= reading {
			conn, gate, done = connections[0], readersDone, func() {}
		}
		go func() {
			defer all.Done()
			defer done()
			r.watch(ctx, o, conn, messages[0], gate, func() {
				if gate == nil && r.waiting.Add(-1) == 0 {
					close(ready)
				}
			}, i)
		}()
	}
	select {
	case <-ready:
	case <-ctx.Done():
		return r, fmt.Errorf("%d followers had no message: %v", r.waiting.Load(), r.Wrong)
	}
	cpu, start := cpuSeconds(), time.Now()
	fmt.Fprintln(os.Stdout, "ready")
	readers.Wait()
	r.Seconds, r.CPUSeconds = time.Since(start).Seconds(), cpuSeconds()-cpu
	start = time.Now()
	close(readersDone)
	all.Wait()
	r.StalledFor = time.Since(start).Seconds()
	return r, nil
}

func (r *followReport) watch(
	ctx context.Context, o options, conn *grpc.ClientConn, request []byte,
	gate <-chan struct{}, first func(), number int,
) {
	f := follower{unfinished: map[int64]bool{}}
	err := f.read(ctx, o, conn, request, gate, first)
	if err == nil && (f.last != o.calls || len(f.unfinished) > 0) {
		err = fmt.Errorf("it ended at %d of %d, %d unfinished", f.last, o.calls, len(f.unfinished))
	}
	r.kept.Lock()
	defer r.kept.Unlock()
	r.Messages += f.messages
	r.Finishes += f.finishes
	r.Deliveries += f.last + f.finishes
	if err != nil && len(r.Wrong) < shownErrors {
		r.Wrong = append(r.Wrong, fmt.Sprintf("follower %d: %v", number, err))
	}
}

func (f *follower) read(
	ctx context.Context, o options, conn *grpc.ClientConn, request []byte,
	gate <-chan struct{}, first func(),
) error {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, o.method)
	if err != nil {
		return err
	}
	if err := errors.Join(stream.SendMsg(request), stream.CloseSend()); err != nil {
		return err
	}
	if gate != nil {
		<-gate
	}
	for {
		r := reply{keep: true}
		if err := stream.RecvMsg(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if f.messages++; f.messages == 1 {
			first()
		}
		if err := f.take(r.body); err != nil {
			return err
		}
	}
}

// take checks one ListExecutionsResponse.
func (f *follower) take(message []byte) error {
	return each(message, func(field protowire.Number, value []byte, _ uint64) error {
		if field != fieldExecutions {
			return nil
		}
		var sequence, state int64
		err := each(value, func(field protowire.Number, _ []byte, number uint64) error {
			switch field {
			case fieldSequence:
				sequence = int64(number)
			case fieldState:
				state = int64(number)
			}
			return nil
		})
		switch {
		case err != nil:
			return err
		case sequence == f.last+1:
			f.last = sequence
			if state == unfinished {
				f.unfinished[sequence] = true
			}
		case f.unfinished[sequence] && state != unfinished:
			delete(f.unfinished, sequence)
			f.finishes++
		default:
			return fmt.Errorf("%d came after %d", sequence, f.last)
		}
		return nil
	})
}

// each hands over the fields of a serialised message.
func each(message []byte, take func(protowire.Number, []byte, uint64) error) error {
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		var value []byte
		var number uint64
		switch kind {
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(message)
		default:
			n = protowire.ConsumeFieldValue(field, kind, message)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if err := take(field, value, number); err != nil {
			return err
		}
	}
	return nil
}
