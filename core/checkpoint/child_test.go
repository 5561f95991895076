package checkpoint

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// childEnv makes the test binary run one childTask instead of the tests, so that a
// test can kill a real process or break its system calls.
const childEnv = "TRIVIUM_CHECKPOINT_TEST_CHILD"

// childTask writes crashModel(seed) to Dir, resuming what it finds there.
type childTask struct {
	Dir       string
	Seed      uint64
	MaxBytes  int64
	Overwrite bool

	FaultAt    string // "create", "fill" or "commit": from then on Syscall has the effect
	Syscall    uintptr
	Effect     uint32 // failWith(errno) or unix.SECCOMP_RET_KILL_PROCESS
	Unreserved bool   // report failure unless Writer.Reserved is false
}

func TestMain(m *testing.M) {
	task := os.Getenv(childEnv)
	if task == "" {
		os.Exit(m.Run())
	}
	if err := runChild(task); err != nil {
		say(err.Error())
		os.Exit(3)
	}
}

// say uses writev, since the fault may be in write.
func say(line string) { unix.Writev(1, [][]byte{[]byte(line + "\n")}) }

func runChild(text string) error {
	var c childTask
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	plan, err := Split(crashModel(), c.MaxBytes)
	if err != nil {
		return err
	}
	if err := c.fault("create"); err != nil {
		return err
	}
	say("create")
	w, err := Create(plan, Options{Dir: c.Dir, Recipe: fmt.Sprint(c.Seed), Overwrite: c.Overwrite, Resume: true, SyncBytes: 40_000})
	if err != nil {
		return err
	}
	if c.Unreserved && w.Reserved {
		return fmt.Errorf("Reserved is true without fallocate")
	}
	if err := c.fault("fill"); err != nil {
		return err
	}
	for _, t := range w.Tensors() {
		if w.Completed(t.Name) {
			continue
		}
		m, err := t.Extent(true).Map(0, t.Size)
		if err != nil {
			return err
		}
		copy(m.Bytes(), content(t.Name, c.Seed, t.Size))
		m.Close()
		if err := w.Done(t); err != nil {
			return err
		}
	}
	for name, data := range crashSide(c.Seed) {
		if err := w.WriteFile(name, []byte(data)); err != nil {
			return err
		}
	}
	if err := c.fault("commit"); err != nil {
		return err
	}
	say("commit")
	return w.Commit()
}

// crashModel is many small tensors, so that there is always something in flight.
func crashModel() []Spec {
	var specs []Spec
	for i := range 60 {
		specs = append(specs, Spec{fmt.Sprintf("model.layers.%d.weight", i), BF16, []int64{64, 80}})
	}
	return append(specs, Spec{"model.step", I64, []int64{}})
}

func crashSide(seed uint64) map[string]string {
	return map[string]string{"config.json": fmt.Sprintf(`{"seed":%d}`, seed), "merges.txt": fmt.Sprint(seed), "README.md": fmt.Sprint(seed)}
}

func (c childTask) command(t testing.TB) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	return cmd
}

func failWith(errno unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(errno) }

// fault makes the kernel answer c.Syscall with c.Effect in every thread of this
// process from now on: a seccomp filter, which needs no privilege.
func (c childTask) fault(phase string) error {
	if c.FaultAt != phase {
		return nil
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(c.Syscall), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: c.Effect},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}
