package pybind

// starters are the operations of short calls, which Submit starts itself.
var starters = map[string]starter{
	"attend": attend,
	"again":  attendAgain,
}

// operations are the other names that Submit knows.
var operations = map[string]operation{
	"checkpoint.chunks": checkpointChunks,
	"checkpoint.files":  checkpointFiles,
	"checkpoint.names":  checkpointNames,
	"select":            selectBlocks,
	"plan":              plan,
	"merge":             merge,
	"merge.begin":       mergeBegin,
	"merge.part":        mergePart,
	"merge.finish":      mergeFinish,
	"sweep":             sweep,
	"series":            series,
	"similarity":        similarity,
	"doctor":            doctor,
	"bridge.check":      checkBridge,
}
