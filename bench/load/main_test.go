package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// An answering server in Go: what the generator reaches against it is what it
// can do itself. `go test -v -run Headroom` prints that.
func serve(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(raw{}), grpc.UnknownServiceHandler(answer))
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

func answer(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	for n := 0; ; n++ {
		r := reply{keep: true}
		if err := stream.RecvMsg(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		times := map[string]int{"/test/echo": 1, "/test/ten": 10}[method]
		switch {
		case method == "/test/refuse", method == "/test/break" && n == 5:
			return status.Error(codes.NotFound, "no such thing")
		case method == "/test/leave" && n == 5:
			return nil
		case method == "/test/break", method == "/test/leave":
			times = 1
		}
		for range times {
			if err := stream.SendMsg(r.body); err != nil {
				return err
			}
		}
	}
}

func file(t *testing.T, n int) string {
	t.Helper()
	var data []byte
	for i := range n {
		data = append(binary.BigEndian.AppendUint32(data, 4), byte(i>>24), byte(i>>16), byte(i>>8), byte(i))
	}
	path := filepath.Join(t.TempDir(), "requests")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestModes(t *testing.T) {
	address, second := serve(t), 200*time.Millisecond
	cases := []struct {
		name             string
		options          options
		messages         int
		calls, got, size int64 // -1: any number above 0
		errors           map[string]int64
		usedUp           bool
	}{
		{"once", options{method: "/test/echo", mode: "unary", once: true}, 100, 100, 100, 400, nil, false},
		{"exactly", options{method: "/test/echo", mode: "unary", calls: 250}, 100, 250, 250, 1000, nil, false},
		{"timed", options{method: "/test/echo", mode: "unary", duration: second}, 100, -1, -1, -1, nil, false},
		{"used up", options{method: "/test/echo", mode: "unary", duration: time.Minute, once: true}, 100, -1, -1, -1, nil, true},
		{"refused", options{method: "/test/refuse", mode: "unary", once: true}, 9, 0, 0, 0, map[string]int64{"NOT_FOUND": 9}, false},
		{"stream", options{method: "/test/ten", mode: "stream", once: true}, 20, 20, 200, 800, nil, false},
		{"stream refused", options{method: "/test/refuse", mode: "stream", once: true}, 9, 0, 0, 0, map[string]int64{"NOT_FOUND": 9}, false},
		{"bidi", options{method: "/test/echo", mode: "bidi", once: true}, 1000, 1000, 1000, 4000, nil, false},
		{"bidi timed", options{method: "/test/echo", mode: "bidi", duration: second}, 1000, -1, -1, -1, nil, false},
		{"bidi refused", options{method: "/test/break", mode: "bidi", once: true}, 1000, 15, 15, 60, map[string]int64{"NOT_FOUND": 3}, false},
		{"bidi left", options{method: "/test/leave", mode: "bidi", once: true}, 1000, 15, 15, 60, map[string]int64{"UNKNOWN": 3}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := c.options
			o.target, o.requests, o.callers, o.window, o.patience = address, file(t, c.messages), 3, 8, time.Minute
			r, err := run(context.Background(), o)
			if err != nil {
				t.Fatal(err)
			}
			for name, pair := range map[string][2]int64{
				"calls": {r.Calls, c.calls}, "messages": {r.Messages, c.got}, "bytes": {r.Bytes, c.size},
			} {
				if got, want := pair[0], pair[1]; got != want && (want >= 0 || got == 0) {
					t.Errorf("%s: %d, not %d", name, got, want)
				}
			}
			if len(r.Errors) != len(c.errors) || r.UsedUp != c.usedUp {
				t.Errorf("errors %v %q, used up %v", r.Errors, r.FirstErrors, r.UsedUp)
			}
			for code, n := range c.errors {
				if r.Errors[code] != n {
					t.Errorf("%s: %d, not %d", code, r.Errors[code], n)
				}
			}
		})
	}
}

func TestEveryRequestOnce(t *testing.T) {
	replies := filepath.Join(t.TempDir(), "replies")
	_, err := run(context.Background(), options{
		target: serve(t), method: "/test/echo", mode: "unary", requests: file(t, 500), replies: replies,
		callers: 16, window: 1, once: true, patience: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := readRequests(replies)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range messages {
		seen[string(m)] = true
	}
	if len(messages) != 500 || len(seen) != 500 {
		t.Errorf("%d replies, %d different", len(messages), len(seen))
	}
}

func TestPercentiles(t *testing.T) {
	values := make([]time.Duration, 0, 1000)
	for i := 1000; i > 0; i-- {
		values = append(values, time.Duration(i)*time.Microsecond)
	}
	if got, want := summary(values), (percentiles{P50: 500, P90: 900, P99: 990, Max: 1000}); got != want {
		t.Errorf("%v, not %v", got, want)
	}
}

func TestHeadroom(t *testing.T) {
	address, requests := serve(t), file(t, 100)
	for _, callers := range []int{1, 64} {
		r, err := run(context.Background(), options{
			target: address, method: "/test/echo", mode: "unary", requests: requests, callers: callers,
			window: 1, duration: time.Second, warmUp: 100 * time.Millisecond, patience: time.Minute,
		})
		if err != nil || len(r.Errors) > 0 {
			t.Fatal(err, r.FirstErrors)
		}
		t.Logf("%d callers against a server in Go, same process: %.0f calls a second, p50 %.0f µs",
			callers, r.PerSecond, r.Latency.P50)
	}
}
