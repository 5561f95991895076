package host

import "strings"

// PluginEnv picks from the host's environment what plugin processes may see:
// where things are, the locale, and the settings of accelerators, of the Go
// runtime and of Trivium. Credentials in other variables stay with the host.
func PluginEnv(environ []string) []string {
	var picked []string
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		if allowedVariable(name) {
			picked = append(picked, variable)
		}
	}
	return picked
}

func allowedVariable(name string) bool {
	switch name {
	case "HOME", "PATH", "USER", "LANG", "TZ", "TMPDIR", "XDG_CACHE_HOME", "LD_LIBRARY_PATH",
		"GOCOVERDIR", "GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK":
		return true
	}
	for _, prefix := range []string{"LC_", "CUDA_", "NVIDIA_", "TRIVIUM_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
