package process

import (
	"encoding/binary"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	pb "github.com/trivium-ml/trivium/plugins/proto/v1"
)

// Packets of the lane, written by hand: package lane would not write these.
const (
	packetHello, packetReply, packetError = 1, 3, 4
	packetHead                            = 32
	packetMost                            = 64 << 10
)

func packet(kind byte, last bool, id uint64, body []byte) []byte {
	p := make([]byte, packetHead, packetHead+len(body))
	p[0] = kind
	if last {
		p[1] = 1
	}
	binary.LittleEndian.PutUint64(p[8:], id)
	return append(p, body...)
}

// parts are the packets of a reply.
func parts(id uint64, text []byte) (packets [][]byte) {
	for len(text) > packetMost-packetHead {
		packets = append(packets, packet(packetReply, false, id, text[:packetMost-packetHead]))
		text = text[packetMost-packetHead:]
	}
	return append(packets, packet(packetReply, true, id, text))
}

// serveHostileLane serves the lane until the host's end is gone.
func serveHostileLane(s *hostileServer) {
	if err := unix.SetNonblock(plugins.LaneFD, false); err != nil {
		panic(err)
	}
	send := func(packets ...[]byte) {
		for _, p := range packets {
			if _, err := unix.SendmsgN(plugins.LaneFD, p, nil, nil, unix.MSG_NOSIGNAL); err != nil {
				select {} // the host looks at the process, not at the lane
			}
		}
	}
	send(packet(packetHello, true, 0, nil))
	in := make([]byte, packetMost)
	for {
		n, err := unix.Read(plugins.LaneFD, in)
		if err != nil || n < packetHead {
			return
		}
		req := &pb.AttendRequest{}
		if err := proto.Unmarshal(in[packetHead:n], req); err != nil {
			return
		}
		id := req.GetCallId()
		reply, err := s.behave(req)
		if err != nil {
			text, _ := proto.Marshal(status.Convert(err).Proto())
			send(packet(packetError, true, id, text))
			continue
		}
		reply.Report.Backend = "lane"
		text, _ := proto.Marshal(reply)
		good := parts(id, text)
		switch behaviourOf(req) {
		case "slow drip":
			for {
				send(packet(packetReply, false, id, []byte{0}))
				time.Sleep(20 * time.Millisecond)
			}
		case "4 GiB":
			part := packet(packetReply, false, id, make([]byte, packetMost-packetHead))
			for range (4 << 30) / packetMost {
				send(part)
			}
		case "empty parts":
			for {
				send(packet(packetReply, false, id, nil))
			}
		case "garbage":
			for {
				send(packet(200, true, id, []byte("garbage")))
			}
		case "other calls":
			for {
				send(packet(packetReply, true, id-1, text))
			}
		case "short packet":
			send([]byte{packetReply, 1})
		case "oversized packet":
			send(packet(packetReply, true, id, make([]byte, 2*packetMost)))
		case "not protobuf":
			send(packet(packetReply, true, id, []byte{0xff, 0xff, 0xff}))
		case "not a status":
			send(packet(packetError, true, id, []byte{0xff, 0xff, 0xff}))
		case "double reply":
			send(append(good, good...)...)
		case "reply after cancel":
			time.Sleep(250 * time.Millisecond)
			send(good...)
		default:
			send(good...)
		}
	}
}

// onLane are behaviours that only the lane can carry, or that end differently there.
var onLane = []behaviour{
	{"4 GiB reply", "4 GiB", 0, []core.ErrorKind{core.ErrInternal}, "of a reply"},
	{"empty parts", "empty parts", 0, []core.ErrorKind{core.ErrInternal}, "of a reply"},
	{"garbage", "garbage", 0, []core.ErrorKind{core.ErrInternal}, "a packet that is not of the contract"},
	{"other calls", "other calls", 0, []core.ErrorKind{core.ErrInternal}, "a packet that is not of the contract"},
	{"short packet", "short packet", 0, []core.ErrorKind{core.ErrInternal}, "a packet that is not of the contract"},
	{"oversized packet", "oversized packet", 0, []core.ErrorKind{core.ErrInternal}, "the plugin answered with"},
	{"not protobuf", "not protobuf", 0, []core.ErrorKind{core.ErrInternal}, "the plugin answered with"},
	{"not a status", "not a status", 0, []core.ErrorKind{core.ErrInternal}, "the plugin answered with"},
}

// TestHostileLane does over the lane what TestHostilePlugins does by gRPC, and
// what only the lane can carry. Each round has a new process, since one that
// broke the lane is not called over it again.
func TestHostileLane(t *testing.T) {
	h, engine, req := hostileEngine(t, "lane")
	// fresh returns when calls go over the lane of a process.
	fresh := func(t *testing.T) {
		t.Helper()
		if pid := pidOf(h, core.Attention); pid != 0 {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
			response, err := callHostile(t, engine, req, "", 0)
			if err == nil && response.Report.Backend == "lane" {
				return
			}
			if err != nil && core.AsError(err).Kind != core.ErrPluginCrashed {
				t.Fatal(err)
			}
		}
		t.Fatal("no call went over the lane")
	}
	fresh(t)
	before := resident()
	tried := onLane
	for _, b := range behaviours {
		if b.name != "4 GiB reply" && b.name != "double reply" {
			tried = append(tried, b)
		}
	}
	for _, b := range tried {
		t.Run(b.name, func(t *testing.T) {
			var worst time.Duration
			for range hostileRounds() {
				fresh(t)
				worst = max(worst, b.try(t, engine, req))
				if _, err := callHostile(t, engine, req, "", 0); err != nil {
					t.Fatalf("the next good call: %v", err)
				}
			}
			checkOverrun(t, worst)
		})
	}
	// The second reply comes when the call is over. It is never another call's.
	t.Run("double reply", func(t *testing.T) {
		for range hostileRounds() {
			fresh(t)
			if _, err := callHostile(t, engine, req, "double reply", 0); err != nil {
				t.Fatal(err)
			}
			_, err := callHostile(t, engine, req, "one NaN output", 0)
			if typed := core.AsError(err); typed == nil || typed.Kind != core.ErrInternal {
				t.Fatalf("got %v: the second reply was taken for this call's", err)
			}
			if _, err := callHostile(t, engine, req, "", 0); err != nil {
				t.Fatalf("the next good call: %v", err)
			}
		}
	})
	checkGrowth(t, before)
}
