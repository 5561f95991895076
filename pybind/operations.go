package pybind

// operations are the names that Submit knows.
var operations = map[string]operation{
	"attend":       attend,
	"select":       selectBlocks,
	"plan":         plan,
	"merge":        merge,
	"sweep":        sweep,
	"series":       series,
	"similarity":   similarity,
	"doctor":       doctor,
	"bridge.check": checkBridge,
}
