package checkpoint

// Names is how the files of checkpoints are called, for those who see only names
// of them, such as listings of remote storage. Patterns are of filepath.Match.
type Names struct {
	Entries   []Entry  `json:"entries"`   // the preferred first
	Metadata  string   `json:"metadata"`  // of a distributed checkpoint
	Ranks     string   `json:"ranks"`     // pattern: what its ranks wrote
	Nested    string   `json:"nested"`    // folder in which accelerate puts one
	CutShards string   `json:"cutShards"` // pattern: shards of a distributed checkpoint that need no metadata
	Shards    string   `json:"shards"`    // pattern: what a shard of a whole checkpoint is usually called
	Files     []string `json:"files"`     // extensions of files that are checkpoints by themselves
	Side      []string `json:"side"`      // patterns: configuration, tokenizer and the like, which a merge copies
	Trainer   string   `json:"trainer"`   // what tells the step
}

// Entry is one way in which a checkpoint begins: the file that has all of it, or
// else the index of its shards.
type Entry struct {
	Single string `json:"single"`
	Index  string `json:"index"`
}

// FileNames are the names that this package looks for.
func FileNames() Names {
	return Names{
		Entries:  []Entry{{singleName, indexName}, {torchSingleName, torchIndexName}},
		Metadata: metadataName, Ranks: ranksPattern, Nested: nestedName, CutShards: cutPattern, Shards: shardPattern,
		Files: extensions[:], Side: sideFiles[:], Trainer: trainerState,
	}
}

const (
	nestedName   = "pytorch_model_fsdp_0"
	ranksPattern = "*.distcp"
	cutPattern   = "shard-*-model-*-of-*.safetensors"
	shardPattern = "model-*-of-*.safetensors"
)

var extensions = [...]string{".safetensors", ".bin", ".pt", ".pth", ".ckpt"}
