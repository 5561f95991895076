package checkpoint

import (
	"bufio"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kill is one SIGKILL: at a system call, or some time after the child says a word.
type kill struct {
	at      string // "create", "fill", "commit"
	syscall uintptr
	delay   time.Duration
}

// TestKilledAnywhere kills a writer at random moments. A reader must never see a
// mixture of the old and the new checkpoint, and the resumed writer must give the
// bytes of one that was never killed. TRIVIUM_KILLS sets the number of random kills.
func TestKilledAnywhere(t *testing.T) {
	random := 30
	if s := os.Getenv("TRIVIUM_KILLS"); s != "" {
		random, _ = strconv.Atoi(s)
	}
	const seed = 20250
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d, %d random kills", seed, random)
	sizes := []int64{0, 200_000} // one file, several shards
	whole := map[int64]map[string]string{}
	took, commit := map[int64]time.Duration{}, map[int64]time.Duration{}
	for _, maxBytes := range sizes {
		dir := t.TempDir()
		begin := time.Now()
		cmd := startUntil(t, childTask{Dir: dir, Seed: 2, MaxBytes: maxBytes}, "commit")
		half := time.Now()
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		took[maxBytes], commit[maxBytes] = time.Since(begin), time.Since(half)
		whole[maxBytes] = snapshot(t, dir)
	}
	kills := []kill{
		{at: "fill", syscall: unix.SYS_FDATASYNC}, {at: "commit", syscall: unix.SYS_FSYNC},
		{at: "commit", syscall: unix.SYS_RENAMEAT}, {at: "commit", syscall: unix.SYS_UNLINKAT},
	}
	for i := range random {
		kills = append(kills, kill{at: []string{"create", "commit"}[i%2]})
	}
	landed := map[string]int{}
	for i, k := range kills {
		dir := t.TempDir()
		c := childTask{Dir: dir, Seed: 2, MaxBytes: sizes[rng.IntN(2)], Overwrite: rng.IntN(3) > 0}
		window := took[c.MaxBytes]
		if k.at == "commit" {
			window = commit[c.MaxBytes]
		}
		k.delay = time.Duration(rng.Int64N(int64(window)))
		if c.Overwrite { // the old checkpoint has the same names, or others
			runWhole(t, childTask{Dir: dir, Seed: 1, MaxBytes: sizes[rng.IntN(2)]})
		}
		for range 1 + i%2 { // some are killed again while resuming
			landed[k.strike(t, c)]++
			checkNoMixture(t, dir)
			if !exists(filepath.Join(dir, journalName)) {
				break
			}
		}
		if exists(filepath.Join(dir, journalName)) || !isSeed(t, dir, 2) {
			runWhole(t, c)
		}
		if got := snapshot(t, dir); !maps.Equal(got, whole[c.MaxBytes]) {
			t.Fatalf("kill %d: the folder holds %v or other bytes, want %v", i, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(whole[c.MaxBytes])))
		}
	}
	t.Logf("kills landed: %v", landed)
	if landed["writing"] == 0 || landed["committing"] == 0 {
		t.Errorf("kills landed %v: want some while writing and some while committing", landed)
	}
}

func runWhole(t *testing.T, c childTask) {
	t.Helper()
	if out, err := c.command(t).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// startUntil starts the child and returns when it has said word.
func startUntil(t *testing.T, c childTask, word string) *exec.Cmd {
	t.Helper()
	cmd := c.command(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == word {
			return cmd
		}
	}
	t.Fatalf("the child ended before it said %q", word)
	return nil
}

// strike kills the child and says what it was doing.
func (k kill) strike(t *testing.T, c childTask) string {
	t.Helper()
	if k.syscall != 0 {
		c.FaultAt, c.Syscall, c.Effect = k.at, k.syscall, unix.SECCOMP_RET_KILL_PROCESS
		if err := c.command(t).Run(); err == nil {
			t.Fatalf("the child survived its system call %d", k.syscall)
		}
	} else {
		cmd := startUntil(t, c, k.at)
		time.Sleep(k.delay)
		cmd.Process.Kill()
		cmd.Wait()
	}
	journal, err := os.ReadFile(filepath.Join(c.Dir, journalName))
	switch {
	case err != nil:
		return "before or after"
	case strings.Contains(string(journal), `"commit"`):
		return "committing"
	}
	return "writing"
}

// checkNoMixture wants a folder that opens to have one seed's tensors only.
func checkNoMixture(t *testing.T, dir string) {
	t.Helper()
	f, err := Open(dir)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("a checkpoint is visible but broken: %v", err)
		}
		return
	}
	defer f.Close()
	if !isSeed(t, dir, 1) && !isSeed(t, dir, 2) {
		t.Fatal("the visible checkpoint is a mixture of old and new tensors")
	}
}

func isSeed(t *testing.T, dir string, seed uint64) bool {
	t.Helper()
	f, err := Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, tensor := range f.Tensors {
		got := make([]byte, tensor.Size)
		if err := tensor.read(got, 0); err != nil {
			t.Fatal(err)
		}
		if string(got) != string(content(tensor.Name, seed, tensor.Size)) {
			return false
		}
	}
	return true
}

// TestFaults breaks one system call of a real process from some moment on. The error
// must be clean and name a file, nothing may become visible, and a later run without
// the fault must finish the work.
func TestFaults(t *testing.T) {
	whole := t.TempDir()
	runWhole(t, childTask{Dir: whole, Seed: 2, MaxBytes: 200_000})
	cases := []struct {
		name    string
		at      string
		syscall uintptr
		errno   unix.Errno
		traces  bool // the unfinished work stays, for a resume
	}{
		{"no space to reserve", "create", unix.SYS_FALLOCATE, unix.ENOSPC, false},
		{"no space for a header", "create", unix.SYS_PWRITE64, unix.ENOSPC, false},
		{"disk fails at the first record", "create", unix.SYS_FDATASYNC, unix.EIO, false},
		{"disk fails while filling", "fill", unix.SYS_FDATASYNC, unix.EIO, true},
		{"no space for a record", "fill", unix.SYS_PWRITE64, unix.ENOSPC, true},
		{"no space for a side file", "fill", unix.SYS_WRITE, unix.ENOSPC, true},
		{"disk fails at commit", "commit", unix.SYS_FSYNC, unix.EIO, true},
		{"no space for the commit record", "commit", unix.SYS_PWRITE64, unix.ENOSPC, true},
		{"disk fails while renaming", "commit", unix.SYS_RENAMEAT, unix.EIO, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			task := childTask{Dir: dir, Seed: 2, MaxBytes: 200_000, FaultAt: c.at, Syscall: c.syscall, Effect: failWith(c.errno)}
			out, err := task.command(t).Output()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 3 {
				t.Fatalf("got %v: %s, want a clean error", err, out)
			}
			for _, part := range []string{"checkpoint: ", dir, c.errno.Error()} {
				if !strings.Contains(string(out), part) {
					t.Errorf("got %s, want it to mention %q", out, part)
				}
			}
			if _, err := Open(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("opening gives %v, want that nothing is visible", err)
			}
			if left := snapshot(t, dir); (len(left) > 0) != c.traces {
				t.Errorf("left %v", slices.Sorted(maps.Keys(left)))
			}
			runWhole(t, childTask{Dir: dir, Seed: 2, MaxBytes: 200_000})
			if !maps.Equal(snapshot(t, dir), snapshot(t, whole)) {
				t.Error("the run after the fault gives other bytes")
			}
		})
	}
}

// TestUnreservedIsSaid writes where blocks cannot be reserved, as on some network
// file systems.
func TestUnreservedIsSaid(t *testing.T) {
	dir := t.TempDir()
	runWhole(t, childTask{Dir: dir, Seed: 2, FaultAt: "create", Syscall: unix.SYS_FALLOCATE, Effect: failWith(unix.EOPNOTSUPP), Unreserved: true})
	if !isSeed(t, dir, 2) {
		t.Error("the checkpoint has other bytes")
	}
}
