// Package sdktest is the conformance suite: what every strategy must keep to,
// tried on the plugin as a host runs it, in a confined process of its own. The
// test binary of a plugin is its plugin, too:
//
//	func TestMain(m *testing.M) { sdktest.Main(m, config()) }
//
//	func TestConformance(t *testing.T) { sdktest.Run(t, config()) }
//
// A strategy that only selects is attended for by a reference kernel of the
// suite, as the engine's kernel would.
package sdktest
