package checkpoint

import (
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Part is one shard of a write that somebody else has begun and will end, to be
// filled here, in this process or on this machine. Several may fill one shard at
// a time if they write the same bytes. The journal is not touched: whoever holds
// the Writer says Done.
type Part struct {
	file  *File
	notes map[string]string
}

// OpenPart opens a shard of the unfinished write in o.Dir, whose recipe and plan
// must be these.
func OpenPart(plan *Plan, o Options, shard string) (*Part, error) {
	text, err := os.ReadFile(filepath.Join(o.Dir, journalName))
	if err != nil {
		return nil, system("resume", o.Dir, err)
	}
	records := new(journal).parse(text)
	if len(records) == 0 {
		return nil, &Error{Op: "resume", File: o.Dir, Reason: "the journal is empty", Hint: "begin the write first", Err: ErrMissing}
	}
	o.Resume = true
	if err := (&Writer{dir: o.Dir, plan: plan}).matches(records[0], o); err != nil {
		return nil, err
	}
	at := slices.IndexFunc(plan.Shards, func(s Shard) bool { return s.Name == shard })
	if at < 0 {
		return nil, &Error{Op: "resume", File: o.Dir, Reason: "has no shard " + shard, Err: ErrMissing}
	}
	s, path := plan.Shards[at], filepath.Join(o.Dir, partial(shard))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, system("resume", path, err)
	}
	if !intact(f, s) {
		f.Close()
		return nil, &Error{Op: "resume", File: path, Reason: "is damaged", Hint: "begin the write again", Err: ErrFormat}
	}
	return &Part{file: newFile(f, path, s.Size, s.header), notes: map[string]string{}}, nil
}

// Tensors lists the tensors of the shard, by offset.
func (p *Part) Tensors() []*Tensor { return p.file.Tensors }

// Completed is false: a part is filled as a whole.
func (p *Part) Completed(string) bool { return false }

// Note is what DoneWith was told.
func (p *Part) Note(name string) string { return p.notes[name] }

// DoneWith keeps a note for the Writer.
func (p *Part) DoneWith(t *Tensor, note string) error {
	p.notes[t.Name] = note
	return nil
}

// Sync waits until the disk, or the server of the file, has the shard.
func (p *Part) Sync() error {
	if err := unix.Fdatasync(p.file.FD()); err != nil {
		return system("write", p.file.Path, err)
	}
	return nil
}

// Close lets go of the file.
func (p *Part) Close() error { return p.file.Close() }

// ShardOf names the file that a tensor is written to, once it is committed.
func (p *Plan) ShardOf() map[string]string {
	shards := map[string]string{}
	for _, s := range p.Shards {
		for _, spec := range s.Specs {
			shards[spec.Name] = s.Name
		}
	}
	return shards
}
