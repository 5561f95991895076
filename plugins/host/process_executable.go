package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trivium-ml/trivium/core"
)

const (
	sealAttempts = 50
	sealPause    = 10 * time.Millisecond
)

// Checksum is the SHA-256 of a file as manifests hold it, in lower-case hex.
func Checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// verifiedExecutable copies path into a sealed memfd and compares the SHA-256 of
// what was copied. The copy is what gets executed, so nothing can be exchanged
// between the check and the start. The caller closes the file.
func verifiedExecutable(path, checksum string) (*os.File, error) {
	return verifiedCopy(path, checksum, true)
}

// verifiedCopy is verifiedExecutable for programs of interpreters too.
func verifiedCopy(path, checksum string, binary bool) (*os.File, error) {
	source, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, core.Errorf(core.ErrPluginMissing, "plugin binary %s does not exist", path).
			WithHint("reinstall the package that ships it, or name the right path")
	}
	if err != nil {
		return nil, unreadable(err)
	}
	defer source.Close()
	copied, err := newExecutableMemfd()
	if err != nil {
		return nil, err
	}
	if err := copyVerified(copied, source, checksum, binary); err != nil {
		copied.Close()
		return nil, err
	}
	return copied, nil
}

func copyVerified(to, from *os.File, checksum string, binary bool) error {
	sum := sha256.New()
	magic := make([]byte, 4)
	if _, err := io.Copy(io.MultiWriter(to, sum), from); err != nil {
		return unreadable(err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != strings.ToLower(checksum) {
		return core.Errorf(core.ErrPluginRefused, "plugin binary %s has SHA-256 %s: want %s", from.Name(), got, checksum).
			WithHint("the file was changed after its manifest was written: reinstall it, or write its manifest anew if you changed it")
	}
	if _, err := to.ReadAt(magic, 0); binary && (err != nil || !bytes.Equal(magic, []byte("\x7fELF"))) {
		return core.Errorf(core.ErrPluginRefused, "plugin binary %s is not an executable of this system: want an ELF file", from.Name()).
			WithHint("build it with go build; a script cannot be run from a verified copy")
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if err := seal(to, seals); err != nil {
		return core.Errorf(core.ErrInternal, "seal the copy of the plugin binary: %w", err)
	}
	return nil
}

// seal adds seals to a memfd. The kernel itself may hold a page that was just
// written for a moment longer, and then says that the file is busy.
func seal(f *os.File, seals int) error {
	for attempt := 1; ; attempt++ {
		_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
		if err != unix.EBUSY || attempt == sealAttempts {
			return err
		}
		time.Sleep(sealPause)
	}
}

func unreadable(err error) *core.Error {
	return core.Errorf(core.ErrPluginRefused, "plugin binary cannot be read: %w", err).
		WithHint("its path must be a file that this user may read")
}

func newExecutableMemfd() (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("trivium-plugin", flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 every memfd is executable and the flag is unknown
		fd, err = unix.MemfdCreate("trivium-plugin", flags)
	}
	if err != nil {
		return nil, core.Errorf(core.ErrPluginRefused, "no memory file to run the plugin from: %w", err).
			WithHint("sysctl vm.memfd_noexec must not be 2")
	}
	return os.NewFile(uintptr(fd), "trivium-plugin"), nil
}
