// Package roundtrip tests plugins/host and plugins/sdk together: every test
// calls strategies in a real plugin process, which is this test binary.
package roundtrip
