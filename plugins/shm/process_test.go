package shm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const childEnv = "TRIVIUM_SHM_TEST_CHILD"

// runChild is a plugin process: for each "id generation" line it adds one to
// every byte; "maps" reports how many segments it has mapped.
func runChild() int {
	table, err := Attach(os.NewFile(3, "side-channel"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer table.Close()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(serveLine(table, lines.Text()))
	}
	return 0
}

func serveLine(table *Table, line string) string {
	if line == "maps" {
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(strings.Count(string(maps), "memfd:trivium"))
	}
	var id, generation uint64
	if _, err := fmt.Sscan(line, &id, &generation); err != nil {
		return err.Error()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	v, err := table.Lookup(ctx, id, generation, ReadWrite)
	if err != nil {
		return err.Error()
	}
	defer v.Release()
	for i := range v.Bytes() {
		v.Bytes()[i]++
	}
	return "done"
}

func TestAnotherProcess(t *testing.T) {
	p := newTestPool(t, Options{RetainBytes: -1})
	peer, child, err := NewPair()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.ExtraFiles = []*os.File{child}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child.Close()
	replies := bufio.NewScanner(out)
	ask := func(format string, a ...any) string {
		fmt.Fprintf(in, format+"\n", a...)
		if !replies.Scan() {
			t.Fatal(io.ErrUnexpectedEOF)
		}
		return replies.Text()
	}

	s, err := p.Get(200_000)
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.Bytes() {
		s.Bytes()[i] = byte(i)
	}
	ensure(t, peer, s)
	if reply := ask("%d %d", s.ID(), s.Generation()); reply != "done" {
		t.Fatal(reply)
	}
	for i, b := range s.Bytes() {
		if b != byte(i)+1 {
			t.Fatalf("byte %d is %d: want %d", i, b, byte(i)+1)
		}
	}
	if reply := ask("maps"); reply != "1" {
		t.Errorf("%s segments mapped: want 1", reply)
	}
	if err := p.Put(s); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the plugin process unmaps", func() bool { return ask("maps") == "0" })
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
