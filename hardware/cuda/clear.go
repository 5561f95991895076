package cuda

/*
#include "src/clear_args.h"
*/
import "C"

import "unsafe"

// Clear gives rows [first, end) of one batch entry the results of queries that
// see no key. It does not wait.
func (q *Queue) Clear(out Tensor, lse Address, lseHead int64, first, end int) error {
	if end <= first {
		return nil
	}
	args := C.ClearArgs{out: C.ulonglong(out.Data), lse: C.ulonglong(lse), out_head: C.longlong(out.StrideH), out_row: C.longlong(out.Stride),
		lse_head: C.longlong(lseHead), first: C.int(first), dim: C.int(out.Dim)}
	return q.launch(launch{kernel: Kernel{Source: "clear.cu", Least: 80}, entry: "clear_rows",
		grid: [3]int{end - first, out.Heads}, threads: 64, args: unsafe.Pointer(&args)})
}
