package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

// raw passes message bytes through untouched: requests are serialised
// beforehand, and of replies only the size matters (or the bytes, when kept).
type raw struct{}

type reply struct {
	size int64
	body []byte
	keep bool
}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	r := v.(*reply)
	r.size = int64(data.Len())
	if r.keep {
		r.body = data.Materialize()
	}
	return nil
}

// sample is one call that ended OK; in bidi mode, one acknowledged message.
type sample struct {
	end      time.Time
	latency  time.Duration
	first    time.Duration // until the first message of a stream
	messages int64
	bytes    int64
}

// caller makes one call after the other on its connection.
type caller struct {
	conn     *grpc.ClientConn
	method   string
	requests *requests
	deadline time.Time // no call starts after it; zero: until the requests are used up
	window   int
	replies  *os.File // where replies are kept; nil: nowhere
	mutex    *sync.Mutex
	samples  []sample
	failures []error
}

// modes are the kinds of RPC.
var modes = map[string]func(*caller, context.Context){
	"unary":  func(c *caller, ctx context.Context) { c.repeat(ctx, c.unary) },
	"stream": func(c *caller, ctx context.Context) { c.repeat(ctx, c.stream) },
	"bidi":   (*caller).bidi,
}

func (c *caller) take() ([]byte, bool) {
	if !c.deadline.IsZero() && !time.Now().Before(c.deadline) {
		return nil, false
	}
	return c.requests.take()
}

func (c *caller) repeat(ctx context.Context, call func(context.Context, []byte, *sample) error) {
	for ctx.Err() == nil {
		request, more := c.take()
		if !more {
			return
		}
		var s sample
		start := time.Now()
		err := call(ctx, request, &s)
		s.end = time.Now()
		s.latency = s.end.Sub(start)
		c.record(s, err)
	}
}

func (c *caller) record(s sample, err error) {
	if err != nil {
		c.failures = append(c.failures, err)
	} else {
		c.samples = append(c.samples, s)
	}
}

func (c *caller) unary(ctx context.Context, request []byte, s *sample) error {
	r := reply{keep: c.replies != nil}
	if err := c.conn.Invoke(ctx, c.method, request, &r); err != nil {
		return err
	}
	s.messages, s.bytes = 1, r.size
	return c.keep(r.body)
}

func (c *caller) keep(body []byte) error {
	if c.replies == nil {
		return nil
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	framed := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	_, err := c.replies.Write(framed)
	return err
}

// stream sends one request and drains what the server streams back.
func (c *caller) stream(ctx context.Context, request []byte, s *sample) error {
	start := time.Now()
	stream, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, c.method)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return err // io.EOF: the status is with RecvMsg
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		var r reply
		if err := stream.RecvMsg(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if s.messages == 0 {
			s.first = time.Since(start)
		}
		s.messages++
		s.bytes += r.size
	}
}

// bidi keeps one stream open and at most c.window messages unacknowledged;
// each message is acknowledged by one reply, in order.
func (c *caller) bidi(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // frees the sender when the stream ends early
	stream, err := c.conn.NewStream(
		ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, c.method)
	if err != nil {
		c.record(sample{}, err)
		return
	}
	slots := make(chan struct{}, c.window)
	starts := make(chan time.Time, c.window) // of the unacknowledged messages
	sending := make(chan struct{})
	go func() {
		defer close(sending)
		defer stream.CloseSend()
		for {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			request, more := c.take()
			if !more {
				return
			}
			starts <- time.Now()
			if stream.SendMsg(request) != nil {
				return // the reason is with RecvMsg
			}
		}
	}()
	for err == nil {
		var r reply
		if err = stream.RecvMsg(&r); err != nil {
			break
		}
		end := time.Now()
		select {
		case start := <-starts:
			<-slots
			c.record(sample{end: end, latency: end.Sub(start), messages: 1, bytes: r.size}, nil)
		default:
			err = errors.New("more replies than messages")
		}
	}
	cancel()
	<-sending
	if errors.Is(err, io.EOF) {
		err = nil
		if lost := len(starts); lost > 0 {
			err = fmt.Errorf("the stream ended with %d messages unacknowledged", lost)
		}
	}
	if err != nil {
		c.record(sample{}, err)
	}
}
