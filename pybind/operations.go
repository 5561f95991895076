package pybind

// operations are the names that Submit knows.
var operations = map[string]operation{
	"bridge.check": checkBridge,
}
