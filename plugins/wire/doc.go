// Package wire converts between the types of core and the messages of the
// plugin contract, both ways. Encoding trusts its input; decoding trusts
// nothing: whatever the message says, it returns a value that is safe to use
// or an error, and never reaches outside of the memory it was given.
//
// Numbers of tensors and block masks are not in messages. Encode functions
// leave those references to the caller, which knows where the memory lies;
// decode functions ask a Memory.
package wire
