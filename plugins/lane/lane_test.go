package lane

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"
)

func pair(t *testing.T, handle Handler) *Caller {
	t.Helper()
	caller, end, err := NewPair(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- Serve(end, handle, func() {}) }()
	t.Cleanup(func() {
		caller.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); !caller.Acquire(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the other end did not greet")
		}
	}
	return caller
}

func send(t *testing.T, c *Caller, id uint64, body []byte) {
	t.Helper()
	if err := c.Send(id, 7, time.Second, func(b []byte) ([]byte, error) { return append(b, body...), nil }); err != nil {
		t.Fatal(err)
	}
}

func answer(t *testing.T, c *Caller, id uint64) *Reply {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		reply, err := c.Wait(id, 50*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if reply != nil {
			return reply
		}
	}
	t.Fatal("no reply")
	return nil
}

func TestCallsAndReplies(t *testing.T) {
	cases := []struct {
		name   string
		size   int // of the reply
		failed bool
	}{{"empty", 0, false}, {"small", 10, false}, {"error", 10, true}, {"one packet", MaxPacket - headerSize, false}, {"several packets", 5*MaxPacket + 3, false}}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			want := bytes.Repeat([]byte{'x'}, c.size)
			asked := make(chan Call, 1)
			caller := pair(t, func(call Call, reply []byte) ([]byte, bool) {
				call.Body = bytes.Clone(call.Body)
				asked <- call
				return append(reply, want...), c.failed
			})
			send(t, caller, 42, []byte("question"))
			reply := answer(t, caller, 42)
			if !bytes.Equal(reply.Body, want) || reply.Failed != c.failed {
				t.Fatalf("got %d bytes, failed %t: want %d, %t", len(reply.Body), reply.Failed, len(want), c.failed)
			}
			if got := <-asked; got.ID != 42 || got.Method != 7 || got.Timeout != time.Second || string(got.Body) != "question" {
				t.Fatalf("the handler got %+v", got)
			}
			caller.Release()
		})
	}
}

// The reply to a call that nobody waited for is not the reply to the next one,
// and nobody waits behind it.
func TestCancelledCall(t *testing.T) {
	proceed := make(chan struct{})
	caller := pair(t, func(call Call, reply []byte) ([]byte, bool) {
		if call.ID == 1 {
			<-proceed
		}
		return append(reply, byte(call.ID)), false
	})
	send(t, caller, 1, nil)
	caller.Release()
	if caller.Acquire() {
		t.Fatal("the lane was acquired before the cancelled call was answered")
	}
	close(proceed)
	for deadline := time.Now().Add(10 * time.Second); !caller.Acquire(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the cancelled call was answered, and the lane is not free")
		}
	}
	send(t, caller, 2, nil)
	if reply := answer(t, caller, 2); reply.Body[0] != 2 {
		t.Fatalf("got the reply to %d, want that to 2", reply.Body[0])
	}
	caller.Release()
}

// What is not the answer to the call that is on its way breaks the lane: an
// endless stream of it would hold the caller beyond any deadline.
func TestOutOfTurn(t *testing.T) {
	for name, packet := range map[string]header{
		"another call":    {kind: kindReply, last: true, id: 7},
		"an earlier call": {kind: kindReply, last: true, id: 1},
		"a call":          {kind: kindCall, last: true, id: 8},
		"hello":           {kind: kindHello, last: true, id: 8},
		"empty part":      {kind: kindReply, id: 8},
		"garbage":         {kind: 200},
	} {
		t.Run(name, func(t *testing.T) {
			caller, end, err := NewPair(1 << 20)
			if err != nil {
				t.Fatal(err)
			}
			defer caller.Close()
			defer end.Close()
			s := server{fd: int(end.Fd()), out: make([]byte, MaxPacket)}
			for _, h := range []header{{kind: kindHello, last: true}, packet} {
				if err := s.send(h, nil); err != nil {
					t.Fatal(err)
				}
			}
			if !caller.Acquire() {
				t.Fatal("not acquired")
			}
			send(t, caller, 8, nil)
			if reply, err := caller.Wait(8, 10*time.Second); !errors.Is(err, errPacket) {
				t.Fatalf("got %v, %v: want %v", reply, err, errPacket)
			}
			caller.Release()
			if caller.Acquire() {
				t.Fatal("a broken lane was acquired")
			}
		})
	}
}

func TestOneAtATime(t *testing.T) {
	caller := pair(t, func(_ Call, reply []byte) ([]byte, bool) { return reply, false })
	if caller.Acquire() {
		t.Fatal("the lane was acquired twice")
	}
	caller.Release()
	if !caller.Acquire() {
		t.Fatal("a lane that was released is not free")
	}
	caller.Release()
}

func TestNotServedIsNotAcquired(t *testing.T) {
	caller, end, err := NewPair(1)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	defer caller.Close()
	if caller.Acquire() {
		t.Fatal("a lane that nobody serves was acquired")
	}
}

func TestWaitEndsEarly(t *testing.T) {
	release := make(chan struct{})
	caller := pair(t, func(_ Call, reply []byte) ([]byte, bool) { <-release; return reply, false })
	send(t, caller, 1, nil)
	began := time.Now()
	if reply, err := caller.Wait(1, time.Millisecond); reply != nil || err != nil {
		t.Fatalf("got %v, %v before the reply", reply, err)
	}
	go caller.Wake()
	for time.Since(began) < 5*time.Second {
		if reply, err := caller.Wait(1, 10*time.Second); reply == nil && err == nil {
			break // a signal of the runtime also ends it
		}
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Fatalf("Wake took %v", took)
	}
	close(release)
	answer(t, caller, 1)
	caller.Release()
}

func TestLost(t *testing.T) {
	t.Run("closed", func(t *testing.T) {
		release := make(chan struct{})
		caller := pair(t, func(_ Call, reply []byte) ([]byte, bool) { <-release; return reply, false })
		send(t, caller, 1, nil)
		go caller.Close()
		for {
			_, err := caller.Wait(1, 10*time.Second)
			if errors.Is(err, ErrLost) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		close(release)
		caller.Release()
	})
	t.Run("dead", func(t *testing.T) {
		caller, end, err := NewPair(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		defer caller.Close()
		s := server{fd: int(end.Fd()), out: make([]byte, MaxPacket)}
		if err := s.send(header{kind: kindHello, last: true}, nil); err != nil {
			t.Fatal(err)
		}
		if !caller.Acquire() {
			t.Fatal("not acquired")
		}
		send(t, caller, 1, nil)
		end.Close()
		if _, err := caller.Wait(1, time.Second); !errors.Is(err, ErrLost) {
			t.Fatalf("got %v, want %v", err, ErrLost)
		}
		caller.Release()
	})
}

func TestTooLarge(t *testing.T) {
	caller := pair(t, func(_ Call, reply []byte) ([]byte, bool) { return append(reply, make([]byte, 2<<20)...), false })
	err := caller.Send(1, 7, 0, func(b []byte) ([]byte, error) { return append(b, make([]byte, MaxPacket)...), nil })
	if !errors.Is(err, ErrTooLarge) {
		t.Fatalf("got %v, want %v", err, ErrTooLarge)
	}
	send(t, caller, 2, nil)
	for {
		reply, err := caller.Wait(2, time.Second)
		if errors.Is(err, errPacket) {
			break
		}
		if err != nil || reply != nil {
			t.Fatalf("got %v, %v: want %v", reply, err, errPacket)
		}
	}
	caller.Release()
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	packet := make([]byte, headerSize)
	header{kind: kindCall, last: true, method: 1, id: 2, timeout: 3}.put(packet)
	f.Add(packet)
	f.Fuzz(func(t *testing.T, packet []byte) {
		h, body, err := parse(packet)
		if err != nil {
			return
		}
		again := make([]byte, headerSize)
		h.put(again)
		back, _, err := parse(again)
		if err != nil || back != h || len(body) != len(packet)-headerSize {
			t.Fatalf("%+v became %+v, %v", h, back, err)
		}
	})
}

func TestNothingLeaks(t *testing.T) {
	before := descriptors(t)
	for range 50 {
		caller, end, err := NewPair(1)
		if err != nil {
			t.Fatal(err)
		}
		end.Close()
		caller.Close()
		caller.Close()
	}
	if after := descriptors(t); after > before {
		t.Fatalf("%d descriptors, %d before", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
