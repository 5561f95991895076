// Package all lists the built-in strategies.
package all

//go:generate go run ./gen
