package host

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

func TestPluginEnv(t *testing.T) {
	got := PluginEnv([]string{"HOME=/h", "AWS_SECRET_ACCESS_KEY=x", "LC_ALL=C", "CUDA_VISIBLE_DEVICES=0", "TRIVIUM_THREADS=2",
		"LD_PRELOAD=evil.so", "PYTHONPATH=/p", "PATH=/bin", "GOMAXPROCS=2", "BROKEN"})
	want := []string{"HOME=/h", "LC_ALL=C", "CUDA_VISIBLE_DEVICES=0", "TRIVIUM_THREADS=2", "PATH=/bin", "GOMAXPROCS=2"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v: want %v", got, want)
	}
}

func TestStderrTail(t *testing.T) {
	var long strings.Builder
	for i := range 30 {
		fmt.Fprintf(&long, "line %d\n", i)
	}
	for _, c := range []struct{ name, in, want string }{
		{"in pieces", "a\nb", "a"},
		{"empty lines", "a\n\n  \nb\n", "a\nb"},
		{"debug log", `{"@level":"debug","@message":"plugin address"}` + "\nx\n", "x"},
		{"error log", `{"@level":"error","@message":"no memory","size":4}` + "\n", "no memory"},
		{"other json", `{"a":1}` + "\n", `{"a":1}`},
		{"last lines", long.String(), strings.TrimSpace(long.String()[strings.Index(long.String(), "line 18"):])},
		{"panic", "before\npanic: boom\n" + long.String(), "panic: boom\n" + strings.TrimSpace(long.String()[:strings.Index(long.String(), "line 11")])},
	} {
		t.Run(c.name, func(t *testing.T) {
			tail := new(stderrTail)
			for _, b := range []byte(c.in) {
				tail.Write([]byte{b})
			}
			if got := tail.String(); got != c.want {
				t.Errorf("got %q: want %q", got, c.want)
			}
		})
	}
	tail := new(stderrTail)
	fmt.Fprintln(tail, strings.Repeat("é", 1<<20))
	if got := tail.String(); len(got) > tailLineSize+4 || !strings.HasSuffix(got, "...") {
		t.Errorf("a long line became %d bytes", len(got))
	}
}

func TestRuntimeDir(t *testing.T) {
	getenv := func(pairs ...string) func(string) string {
		return func(name string) string {
			if at := slices.Index(pairs, name); at >= 0 {
				return pairs[at+1]
			}
			return ""
		}
	}
	short, err := os.MkdirTemp("/tmp", "rt")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(short)
	long := filepath.Join(short, strings.Repeat("d", 90))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		getenv func(string) string
		under  string
	}{
		{"runtime directory", getenv("XDG_RUNTIME_DIR", short, "TMPDIR", "/var/tmp"), short},
		{"temporary directory", getenv("TMPDIR", short), short},
		{"nothing set", getenv(), "/tmp"},
		{"too long", getenv("XDG_RUNTIME_DIR", long, "TMPDIR", long), "/tmp"},
		{"missing", getenv("XDG_RUNTIME_DIR", "/nowhere", "TMPDIR", short), short},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := OpenRuntimeDir(c.getenv)
			if err != nil {
				t.Fatal(err)
			}
			if filepath.Dir(d.Path) != c.under {
				t.Errorf("got %s: want it under %s", d.Path, c.under)
			}
			if st, err := os.Stat(d.Path); err != nil || st.Mode().Perm() != 0o700 {
				t.Errorf("mode %v, %v: want 0700", st.Mode(), err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(d.Path); !os.IsNotExist(err) {
				t.Errorf("after close: %v", err)
			}
		})
	}

	live, err := newRuntimeDir(short)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	dead := filepath.Join(short, runtimePrefix+"1-2")
	if err := os.MkdirAll(filepath.Join(dead, "plugin-dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	other, alike := filepath.Join(short, "other"), filepath.Join(short, runtimePrefix+"1-my-results")
	for _, path := range []string{other, alike} {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(other, filepath.Join(short, runtimePrefix+"3-4")); err != nil {
		t.Fatal(err)
	}
	sweep(short)
	for path, want := range map[string]bool{live.Path: true, dead: false, other: true, alike: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s after the sweep: %v", path, err)
		}
	}
}

func TestRuntimeDirsOfConcurrentHosts(t *testing.T) {
	base := t.TempDir()
	found := make(chan *RuntimeDir)
	for range 8 {
		go func() {
			sweep(base)
			d, err := newRuntimeDir(base)
			if err != nil {
				t.Error(err)
			}
			found <- d
		}()
	}
	for range 8 {
		d := <-found
		if _, err := os.Stat(d.Path); err != nil {
			t.Errorf("a locked directory was swept: %v", err)
		}
		defer d.Close()
	}
}

func TestVerifiedCopyIsSealed(t *testing.T) {
	sum, err := Checksum(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	f, err := verifiedExecutable(os.Args[0], strings.ToUpper(sum))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0}, 0); err == nil {
		t.Error("the verified copy can be written")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("the verified copy can be truncated")
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v: want close-on-exec", flags, err)
	}
}

func TestPluginLog(t *testing.T) {
	var out bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&out)
	logger.SetLevel(logrus.DebugLevel)
	logger.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true})
	var l hclog.Logger = &pluginLog{entry: logrus.NewEntry(logger)}
	if l.GetLevel() != hclog.Debug || !l.IsDebug() || l.IsTrace() {
		t.Errorf("level %v: want the logrus logger's", l.GetLevel())
	}
	for _, c := range []struct {
		name string
		log  func()
		want string
	}{
		{"fields", func() { l.Info("started", "size", 3, "name", "x") }, "level=info msg=started name=x size=3\n"},
		{"odd argument", func() { l.Warn("m", "lonely") }, "level=warning msg=m extra=lonely\n"},
		{"implied", func() { l.With("a", 1).With("b", 2).Error("m", "c", 3) }, "level=error msg=m a=1 b=2 c=3\n"},
		{"named", func() { l.Named("one").Named("two").Debug("m") }, "level=debug msg=m component=one.two\n"},
		{"below the level", func() { l.Trace("m") }, ""},
		{"routine", func() { l.Warn("plugin failed to exit gracefully") }, "level=debug msg=\"plugin failed to exit gracefully\"\n"},
		{"standard", func() { l.StandardLogger(nil).Print("line") }, "level=debug msg=line\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out.Reset()
			c.log()
			if got := out.String(); got != c.want {
				t.Errorf("got %q: want %q", got, c.want)
			}
		})
	}
	one := l.With("a", 1)
	one.With("b", 2)
	if got := one.With("c", 3).ImpliedArgs(); len(got) != 4 || got[2] != "c" {
		t.Errorf("implied arguments %v: loggers share memory", got)
	}
}
