package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// requests hands out pre-serialised messages in the order of their file,
// shared by all callers.
type requests struct {
	messages [][]byte
	once     bool  // each message is sent at most once
	limit    int64 // how many to hand out in all; 0: no limit
	next     atomic.Int64
	usedUp   atomic.Int64 // when the last one had gone, Unix nanoseconds; 0: not yet
}

// readRequests reads messages that each follow their length, a uint32 in
// network order.
func readRequests(path string) ([][]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var messages [][]byte
	for len(data) > 0 {
		if len(data) < 4 {
			return nil, fmt.Errorf("%s: %w in a length", path, io.ErrUnexpectedEOF)
		}
		size := int(binary.BigEndian.Uint32(data))
		if data = data[4:]; len(data) < size {
			return nil, fmt.Errorf("%s: %w in message %d", path, io.ErrUnexpectedEOF, len(messages))
		}
		messages = append(messages, data[:size:size])
		data = data[size:]
	}
	if len(messages) == 0 {
		return nil, errors.New(path + ": no messages")
	}
	return messages, nil
}

// take returns the next message, or false when there is none.
func (r *requests) take() ([]byte, bool) {
	n := r.next.Add(1) - 1
	if (r.limit > 0 && n >= r.limit) || (r.once && n >= int64(len(r.messages))) {
		r.usedUp.CompareAndSwap(0, time.Now().UnixNano())
		return nil, false
	}
	return r.messages[n%int64(len(r.messages))], true
}
