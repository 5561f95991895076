// Package pybind is the one package that gopy binds: the border between Python and
// the engine. Only strings, integers and handles cross it, and every exported
// function returns (int64, error) or (string, error), refuses to run in a forked
// child and turns a panic into an error, because a panic would end Python.
//
// Work is submitted as a job, waited for in short steps and cancelled on demand, so
// that Ctrl-C and deadlines work. Requests and results are JSON; tensors go by address.
package pybind
