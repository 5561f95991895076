// Package checkpoint reads and writes model checkpoints: safetensors files in
// Hugging Face folders, whole or sharded. It also reads what torch.save writes,
// without running the pickle in it.
//
// Reading is strict. Every rule of the format is enforced, the index and the shards
// must say the same, and an error names the file and the tensor. No tensor's bytes
// are read on opening; a Tensor is a range of an open File, to be mapped, hashed or
// sent to another process as a descriptor.
//
// Writing is atomic and can be resumed. A Plan fixes every byte but the tensors'
// values; Create reserves the space and writes the headers under temporary names;
// whoever computes the tensors writes them in place and the Writer's owner says Done;
// Commit makes the checkpoint visible. A journal in the folder remembers what is
// Done, so that a killed write goes on where it was and gives the same bytes.
//
//	source, err := checkpoint.Open("step-3000")
//	plan, err := checkpoint.Split(specs, checkpoint.DefaultShardSize)
//	w, err := checkpoint.Create(plan, checkpoint.Options{Dir: "merged", Recipe: hash, Resume: true})
//	for _, t := range w.Tensors() {
//		if !w.Completed(t.Name) {
//			// fill t.Size bytes at t.Offset of t.File, then
//			err = w.Done(t)
//		}
//	}
//	names, err := w.CopySideFiles(source.Dir)
//	err = w.Commit()
package checkpoint
