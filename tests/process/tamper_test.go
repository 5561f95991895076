package process

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins"
	"github.com/trivium-ml/trivium/plugins/host"
)

// canary at the end of the binary makes it write a file when it is run, so that
// a tampered binary that was run tells.
var (
	canary         = []byte("\x00this binary was tampered with\x00")
	canaryVariable = "TRIVIUM_PROCESS_TEST_CANARY"
)

// sing writes the file if this binary was tampered with.
func sing() {
	path := os.Getenv(canaryVariable)
	f, err := os.Open("/proc/self/exe")
	if path == "" || err != nil {
		return
	}
	defer f.Close()
	end := make([]byte, len(canary))
	if _, err := f.Seek(-int64(len(canary)), io.SeekEnd); err != nil {
		return
	}
	if _, err := io.ReadFull(f, end); err == nil && bytes.Equal(end, canary) {
		os.WriteFile(path, []byte("run"), 0o600)
	}
}

// TestTampered starts binaries that are not what their manifest says: none is
// run, also not when it is exchanged while it is being started.
func TestTampered(t *testing.T) {
	good, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	sum, err := host.Checksum(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	dir, base := t.TempDir(), shortDir(t)
	song := filepath.Join(dir, "song")
	t.Setenv(canaryVariable, song)
	path, evil := filepath.Join(dir, "plugin"), filepath.Join(dir, "evil")
	if err := os.WriteFile(evil, append(bytes.Clone(good), canary...), 0o700); err != nil {
		t.Fatal(err)
	}
	start := func(sum string) error { return startOnce(t, path, sum, base) }
	random := rand.New(rand.NewPCG(3, 4))
	count := campaign(12, 300)
	refused, ran := 0, 0
	for i := range count {
		var err error
		if i%6 == 5 {
			err = swapping(t, good, path, evil, random, func() error { return start(sum) })
		} else {
			os.Remove(path) // it may be another name of the evil one
			if err := os.WriteFile(path, tampered(i%6, good, random), 0o700); err != nil {
				t.Fatal(err)
			}
			err = start(sum)
		}
		switch {
		case err != nil && core.AsError(err).Kind == core.ErrPluginRefused:
			refused++
		case err == nil && i%6 == 5:
			ran++ // what was verified was run, whatever lies there by now
		default:
			t.Errorf("%d: got %v: want it refused", i, err)
		}
		if _, err := os.Stat(song); err == nil {
			t.Fatalf("%d: the tampered binary was run", i)
		}
	}
	t.Logf("%d tampered binaries: %d refused, %d exchanged during the start and the verified copy ran, none was run", count, refused, ran)
	// The canary must be able to sing: what is run from the evil file does.
	evilSum, err := host.Checksum(evil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(evil, path); err != nil {
		t.Fatal(err)
	}
	if err := start(evilSum); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(song); err != nil {
		t.Errorf("the canary does not sing when its binary is run: %v", err)
	}
}

// tampered is the binary with something else in it.
func tampered(how int, good []byte, random *rand.Rand) []byte {
	bad := bytes.Clone(good)
	switch how {
	case 0: // one bit
		bad[random.IntN(len(bad))] ^= 1 << random.IntN(8)
	case 1: // cut short
		bad = bad[:random.IntN(len(bad))]
	case 2: // longer
		bad = append(bad, canary...)
	case 3: // a page of zeros
		at := random.IntN(len(bad) - 4096)
		clear(bad[at : at+4096])
		bad[at] ^= 1
	case 4: // something else
		bad = append([]byte("#!/bin/sh\ntouch \"$"+canaryVariable+"\"\n"), byte(random.IntN(256)))
	}
	return bad
}

// swapping exchanges the good binary for the evil one, at a random moment of
// the start: by another name for the path, or by writing over the file.
func swapping(t *testing.T, good []byte, path, evil string, random *rand.Rand, start func() error) error {
	t.Helper()
	os.Remove(path)
	if err := os.WriteFile(path, good, 0o700); err != nil {
		t.Fatal(err)
	}
	link := path + ".evil"
	os.Remove(link)
	if err := os.Link(evil, link); err != nil {
		t.Fatal(err)
	}
	overwrite := random.IntN(2) == 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(time.Duration(random.IntN(30_000)) * time.Microsecond)
		if !overwrite {
			os.Rename(link, path)
			return
		}
		if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			f.WriteAt(canary, int64(len(good)))
			f.Close()
		}
	}()
	err := start()
	<-done
	return err
}

func startOnce(t *testing.T, path, sum, base string) error {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	dir, err := host.OpenRuntimeDir(func(string) string { return base })
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	process := host.NewProcess(host.Config{
		Name: "tampered", Log: logrus.NewEntry(log), Path: path, SHA256: sum, RuntimeDir: dir.Path,
		Env: append(host.PluginEnv(os.Environ()), pluginMode+"=1", plugins.EnvKind+"="+string(core.Position)),
	})
	defer process.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = process.Conn(ctx)
	return err
}
