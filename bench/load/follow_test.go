package main

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// listing is a ListExecutionsResponse of executions, each a sequence and a state.
func listing(executions ...[2]uint64) []byte {
	var message []byte
	for _, e := range executions {
		var one []byte
		for i, field := range []protowire.Number{fieldSequence, fieldState} {
			one = protowire.AppendVarint(protowire.AppendTag(one, field, protowire.VarintType), e[i])
		}
		message = protowire.AppendBytes(protowire.AppendTag(message, fieldExecutions, protowire.BytesType), one)
	}
	return message
}

func TestFollowerChecks(t *testing.T) {
	const exited = 1
	cases := []struct {
		name     string
		messages [][]byte
		wrong    string
	}{
		{"in order", [][]byte{listing([2]uint64{1, exited}, [2]uint64{2, exited}), listing([2]uint64{3, exited})}, ""},
		{"finished later", [][]byte{listing([2]uint64{1, unfinished}, [2]uint64{2, exited}), listing([2]uint64{1, exited})}, ""},
		{"a gap", [][]byte{listing([2]uint64{1, exited}), listing([2]uint64{3, exited})}, "3 came after 1"},
		{"a repeat", [][]byte{listing([2]uint64{1, exited}, [2]uint64{1, exited})}, "1 came after 1"},
		{"finished twice", [][]byte{listing([2]uint64{1, unfinished}), listing([2]uint64{1, exited}), listing([2]uint64{1, exited})}, "1 came after 1"},
		{"cut", [][]byte{listing([2]uint64{1, exited})[:3]}, "unexpected EOF"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f, got := follower{unfinished: map[int64]bool{}}, ""
			for _, message := range c.messages {
				if err := f.take(message); err != nil {
					got = err.Error()
				}
			}
			if (got == "") != (c.wrong == "") || !strings.Contains(got, c.wrong) {
				t.Errorf("%q, not %q", got, c.wrong)
			}
		})
	}
}

func TestFollow(t *testing.T) {
	message := listing([2]uint64{1, 1}, [2]uint64{2, 1})
	requests := filepath.Join(t.TempDir(), "requests")
	framed := append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)
	if err := os.WriteFile(requests, framed, 0o600); err != nil {
		t.Fatal(err)
	}
	// The server answers the message it was sent.
	o := options{target: serve(t), method: "/test/echo", requests: requests, callers: 5, stalled: 1, calls: 2, patience: time.Minute}
	r, err := follow(context.Background(), o)
	if err != nil || len(r.Wrong) > 0 || r.Deliveries != 10 || r.Messages != 5 {
		t.Errorf("%+v, %v", r, err)
	}
	o.calls = 3
	if r, err = follow(context.Background(), o); err != nil || len(r.Wrong) == 0 {
		t.Errorf("a stream that ends early is right: %+v, %v", r, err)
	}
}
