package confine

// Policy is what the launcher restricts a program to.
type Policy struct {
	// Program is the descriptor of the executable, which is closed on exec; or
	// Interpreter is the path of one, and Program stays open for it to read.
	Program     int    `json:"program"`
	Interpreter string `json:"interpreter,omitempty"`

	Read      []string `json:"read,omitempty"`       // files and directories that may be read, beside the system's
	ReadWrite []string `json:"read_write,omitempty"` // directories and files that may also be written
	Sockets   string   `json:"sockets"`              // directory in which unix sockets may be made
	Scratch   string   `json:"scratch"`              // writable; the working directory

	Memory      uint64 `json:"memory"`              // bytes of private memory; 0: no limit
	FileSize    uint64 `json:"file_size,omitempty"` // bytes that a file may grow to; 0: no limit
	Descriptors uint64 `json:"descriptors"`         // how many may be open
	Network     bool   `json:"network,omitempty"`   // sockets of every kind
	Processes   bool   `json:"processes,omitempty"` // may start processes
	GPU         bool   `json:"gpu,omitempty"`       // devices of accelerators
}

// name is the launcher's argument zero, by which it knows what it is.
const name = "trivium-confine"

// RefusedStatus is how a launcher ends that could not confine.
const RefusedStatus = "exit status 70"

const refusedCode = 70

// system is what every program may read: its loader and libraries, the
// settings of those, and what runtimes ask about the machine.
var system = []string{
	"/usr", "/lib", "/lib64", "/lib32",
	"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/os-release", "/etc/ssl/certs",
	"/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/filesystems", "/proc/sys/kernel", "/proc/sys/vm",
	"/sys/devices/system", "/sys/kernel/mm/transparent_hugepage", "/sys/fs/cgroup",
}

// loaders may be executed: the kernel does so for a program that is linked
// dynamically.
var loaders = []string{
	"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1",
}

// devices may be read and written.
var devices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}

// accelerators are devices and settings of GPUs, for programs that may use one.
var accelerators = []string{"/dev/nvidia*", "/dev/nvidia-caps", "/dev/dri", "/dev/kfd", "/proc/driver/nvidia"}
