package main

import (
	"testing"

	"github.com/trivium-ml/trivium/plugins/sdk/sdktest"
)

// The test binary is the plugin that its own test starts.
func TestMain(m *testing.M) { sdktest.Main(m, config()) }

func TestConformance(t *testing.T) { sdktest.Run(t, config()) }
