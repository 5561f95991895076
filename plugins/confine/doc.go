// Package confine starts a program that may read the system and write to its
// scratch directory, and little else: no network, no other processes, bounded
// memory. A small launcher, trusted like the host, takes the restrictions upon
// itself and then becomes the program, which cannot shed them.
//
// Four layers, each by itself enough against part of what a program may try:
// Landlock (files, abstract sockets, signals), a seccomp filter (the system
// calls that Landlock does not see), no capabilities, and resource limits.
package confine
