package cpu

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
)

// The kernels, without Go, under AddressSanitizer and UBSan.
func TestSanitizers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	if runtime.GOOS != "linux" {
		t.Skip("the script is for Linux")
	}
	runKernels(t, os.Environ(), "20260", "25")
}

// The arm64 kernels against serial, on a machine that is another.
func TestNeonEmulated(t *testing.T) {
	if testing.Short() || runtime.GOARCH == "arm64" {
		t.Skip("takes half a minute, and arm64 machines run them anyway")
	}
	for _, tool := range []string{"aarch64-linux-gnu-gcc", "qemu-aarch64"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	runKernels(t, append(os.Environ(), "CC=aarch64-linux-gnu-gcc", "RUN=qemu-aarch64 -L /usr/aarch64-linux-gnu", "SANITIZE="), "20260", "25")
}

func TestAMXAvailable(t *testing.T) {
	for _, isa := range Available() {
		if isa == "amx" {
			return // the other tests cover it
		}
	}
	t.Skip("this machine has no AMX-BF16: its kernels are compiled and not run, but by TestAMXEmulated")
}

// The kernels of AMX with its tiles in memory, on a machine that has the rest of what they need.
// `make amx` runs all tests so.
func TestAMXEmulated(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	if isas := Available(); isas[0] != "avx512bf16" {
		t.Skipf("for machines with AVX512-BF16 and without AMX: this one has %v", isas)
	}
	runKernels(t, append(os.Environ(), "DEFINE=-DTRIVIUM_EMULATED_TILES"), "20261", "8")
}

func runKernels(t *testing.T, environment []string, arguments ...string) {
	cmd := exec.Command("testdata/sanitize.sh", arguments...)
	cmd.Env = environment
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}
