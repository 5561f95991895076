// Command dilated-window is a plugin for Trivium.
package main

import (
	"github.com/trivium-ml/trivium/core"
	"github.com/trivium-ml/trivium/plugins/sdk"
)

func config() sdk.Config {
	return sdk.Config{Strategies: []core.Strategy{Strategy{}}}
}

func main() { sdk.Serve(config()) }
