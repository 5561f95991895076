// Command launcher confines the plugin that it then becomes. A host starts it.
package main

import (
	"fmt"
	"os"

	"github.com/trivium-ml/trivium/plugins/confine"
)

func main() {
	confine.Enter()
	fmt.Fprintln(os.Stderr, "this starts confined plugins for a Trivium host; it is of no use by itself")
	os.Exit(2)
}
