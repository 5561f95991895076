// Package table is the C table of operations that a device implements, one
// table for each instruction set. kernels.h is the contract.
package table

import _ "embed"

// Header is kernels.h, for devices that compile their kernels at run time.
//
//go:embed kernels.h
var Header string
