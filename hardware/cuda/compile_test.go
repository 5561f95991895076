package cuda

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// compiler skips the test, with the reason, where libnvrtc is absent.
func compiler(t *testing.T, cacheDir string) *Compiler {
	t.Helper()
	o := FromEnvironment()
	o.CacheDir = cacheDir
	c, err := OpenCompiler(o)
	var missing *NotAvailableError
	if errors.As(err, &missing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEveryKernelCompiles(t *testing.T) {
	c := compiler(t, "")
	for _, arch := range []string{"sm_80", "sm_90a", "sm_100a"} {
		compiled := 0
		for _, k := range Kernels() {
			if !k.For(arch) || skipped(k, arch) {
				continue
			}
			compiled++
			t.Run(arch+" "+k.String(), func(t *testing.T) {
				t.Parallel()
				cubin, err := c.Compile(k, arch)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.HasPrefix(cubin, []byte("\x7fELF")) {
					t.Errorf("%d bytes that are no ELF file", len(cubin))
				}
			})
		}
		if compiled == 0 {
			t.Errorf("no kernel for %s", arch)
		}
	}
}

// skipped leaves out what costs minutes and adds little: on architectures above
// a kernel's first one, all but the plainest and the fullest variant in bf16.
func skipped(k Kernel, arch string) bool {
	features := 0
	for _, f := range []Feature{Bands, Window, Softcap, Sinks} {
		if slices.Contains(k.Defines, string(f)) {
			features++
		}
	}
	first := strings.HasPrefix(arch, fmt.Sprintf("sm_%d", k.Least))
	if !first && slices.Contains(k.Defines, "FP16") {
		return true
	}
	return features > 0 && features < 4 && (!first || testing.Short())
}

func TestKernelFor(t *testing.T) {
	hopper, any80 := Kernel{Least: 90, Exact: true}, Kernel{Least: 80}
	for _, c := range []struct {
		kernel Kernel
		arch   string
		want   bool
	}{
		{hopper, "sm_90a", true}, {hopper, "sm_90", false}, {hopper, "sm_100a", false}, {hopper, "sm_80", false},
		{any80, "sm_80", true}, {any80, "sm_100a", true}, {any80, "sm_75", false}, {any80, "compute", false},
	} {
		if got := c.kernel.For(c.arch); got != c.want {
			t.Errorf("%+v for %s: %v", c.kernel, c.arch, got)
		}
	}
}

func TestSourceThatDoesNotCompile(t *testing.T) {
	c := compiler(t, "")
	_, err := c.Compile(Kernel{Source: "attend_sm90.cu", Defines: []string{"HEAD_DIM=nonsense"}, Least: 90, Exact: true}, "sm_90a")
	var refused *CompileError
	if !errors.As(err, &refused) || !strings.Contains(refused.Log, "nonsense") {
		t.Errorf("error %v: want a CompileError with the compiler's log", err)
	}
}

func TestCompiledOnce(t *testing.T) {
	dir := t.TempDir()
	c := compiler(t, dir)
	k := indexKernel("flexindex_select.cu", "")
	first, err := c.Compile(k, "sm_80")
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 1 || filepath.Ext(files[0]) != ".cubin" {
		t.Fatalf("cache holds %v: want one cubin", files)
	}
	again := &Compiler{version: c.version, cache: c.cache, headers: c.headers} // cannot compile
	second, err := again.Compile(k, "sm_80")
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("second compile: %d bytes, %v: want the %d of the cache", len(second), err, len(first))
	}
	damaged, _ := os.ReadFile(files[0])
	damaged[len(damaged)/2] ^= 1
	if err := os.WriteFile(files[0], damaged, 0o644); err != nil {
		t.Fatal(err)
	}
	third, err := c.Compile(k, "sm_80")
	if err != nil || !bytes.Equal(first, third) {
		t.Errorf("compile over a damaged file: %d bytes, %v: want it built again", len(third), err)
	}
}

func TestKeyDependsOnEverything(t *testing.T) {
	base := Compiler{version: "13.2", headers: []header{{"a.h", "x"}}}
	key := base.key([]byte("source"), []string{"-Da"})
	for name, other := range map[string]string{
		"version": (&Compiler{version: "13.3", headers: base.headers}).key([]byte("source"), []string{"-Da"}),
		"header":  (&Compiler{version: "13.2", headers: []header{{"a.h", "y"}}}).key([]byte("source"), []string{"-Da"}),
		"source":  base.key([]byte("sourc"), []string{"-Da"}),
		"option":  base.key([]byte("source"), []string{"-Db"}),
	} {
		if other == key {
			t.Errorf("another %s has the same key", name)
		}
	}
}

func TestCandidates(t *testing.T) {
	dir := t.TempDir()
	lib := filepath.Join(dir, "cu13", "lib")
	if err := os.MkdirAll(lib, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(lib, "libnvrtc.so.13")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]string{"site-packages nvidia": dir, "its cu13": filepath.Join(dir, "cu13"), "its lib": lib, "the file": file} {
		if got := candidates(at); len(got) != 1 || got[0] != file {
			t.Errorf("%s: candidates %v, want %s", name, got, file)
		}
	}
}

func TestMissingCompiler(t *testing.T) {
	_, err := OpenCompiler(Options{NVRTC: t.TempDir()})
	var missing *NotAvailableError
	if !errors.As(err, &missing) || missing.Missing != "libnvrtc" || missing.Reason == "" {
		t.Errorf("error %v: want libnvrtc named as missing, with a reason", err)
	}
}
