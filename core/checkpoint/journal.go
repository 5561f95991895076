package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const journalName = ".trivium-journal.json"

// record is one line of the journal: crc32c of the JSON, a space, the JSON. The
// first line has the header's fields, each later one exactly one other field.
type record struct {
	Version   int     `json:"version,omitempty"`
	Recipe    string  `json:"recipe,omitempty"`
	Plan      string  `json:"plan,omitempty"`
	Overwrite bool    `json:"overwrite,omitempty"`
	Done      string  `json:"done,omitempty"`   // a tensor whose bytes are on the disk
	Note      string  `json:"note,omitempty"`   // the caller's, on Done
	Commit    *commit `json:"commit,omitempty"` // every byte is on the disk, renaming begins
}

// commit lists what renaming needs to know when it is taken up again.
type commit struct {
	Side  []string `json:"side"`  // staged side files
	Stale []string `json:"stale"` // files of the replaced checkpoint, removed at the end
}

const journalVersion = 1

// journal is open and locked: one writer per folder, until Close or death.
type journal struct {
	f        *os.File
	end      int64 // of the last good record
	volatile bool
}

// openJournal locks the folder's journal, creating it if needed, and returns its
// good records. A torn tail, left by a crash, is cut off: what it said is done again.
func openJournal(dir string, volatile bool) (*journal, []record, error) {
	path := filepath.Join(dir, journalName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, nil, system("write", path, err)
	}
	if err := lock(f); err != nil {
		f.Close()
		return nil, nil, err
	}
	text, err := io.ReadAll(f)
	if err != nil {
		f.Close()
		return nil, nil, system("resume", path, err)
	}
	j := &journal{f: f, volatile: volatile}
	records := j.parse(text)
	if err := f.Truncate(j.end); err != nil {
		f.Close()
		return nil, nil, system("resume", path, err)
	}
	return j, records, nil
}

// lock also wants the locked file to be the one in the folder, since another
// process may have finished, and removed it, between open and lock.
func lock(f *os.File) error {
	busy := &Error{Op: "write", File: f.Name(), Reason: "another process is writing this checkpoint", Hint: "wait for it, or write elsewhere", Err: ErrInProgress}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return busy
	} else if err != nil {
		return system("write", f.Name(), err)
	}
	mine, err := f.Stat()
	if err != nil {
		return system("write", f.Name(), err)
	}
	if there, err := os.Stat(f.Name()); err != nil || !os.SameFile(mine, there) {
		return busy
	}
	return nil
}

func (j *journal) parse(text []byte) []record {
	var records []record
	for {
		line, rest, whole := bytes.Cut(text, []byte("\n"))
		r, ok := decodeRecord(line)
		if !whole || !ok || (len(records) == 0) != (r.Version != 0) {
			return records
		}
		records, text = append(records, r), rest
		j.end += int64(len(line)) + 1
	}
}

func decodeRecord(line []byte) (record, bool) {
	var r record
	sum, body, ok := bytes.Cut(line, []byte(" "))
	if !ok || string(sum) != checksum(body) {
		return r, false
	}
	return r, json.Unmarshal(body, &r) == nil
}

func checksum(body []byte) string {
	return fmt.Sprintf("%08x", crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
}

// append writes records and waits until they are on the disk. After an error the
// journal is as before, or ends in a torn record, which is the same.
func (j *journal) append(records ...record) error {
	var b bytes.Buffer
	for _, r := range records {
		body, err := json.Marshal(r)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %s\n", checksum(body), body)
	}
	if _, err := j.f.WriteAt(b.Bytes(), j.end); err != nil {
		return system("write", j.f.Name(), err)
	}
	if j.volatile {
		j.end += int64(b.Len())
		return nil
	}
	if err := unix.Fdatasync(int(j.f.Fd())); err != nil {
		return system("write", j.f.Name(), err)
	}
	j.end += int64(b.Len())
	return nil
}

// close releases the lock and leaves the file.
func (j *journal) close() error { return j.f.Close() }
