// Package sdk is what the author of a plugin imports. A plugin is a program
// whose main calls Serve with its strategies:
//
//	func main() {
//		sdk.Serve(sdk.Config{Strategies: []core.Strategy{&MyStrategy{}}})
//	}
//
// Started by a host it serves one kind of its strategies until the host ends;
// started with --describe it prints what its manifest says of them.
package sdk
