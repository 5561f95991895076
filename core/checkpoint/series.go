package checkpoint

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// Series is the checkpoints of one training run.
type Series struct {
	Steps   []Step   // rising
	Ignored []string // checkpoint folders whose step is not known
}

// Step is a checkpoint and the training step it was saved at.
type Step struct {
	Dir  string `json:"dir"`
	Step int64  `json:"step"`
}

const trainerState = "trainer_state.json"

// usualName is how trainers name their checkpoints: step-1000, checkpoint-1000,
// global_step1000, iter_0001000, step1000-tokens4B.
func usualName() *regexp.Regexp {
	return regexp.MustCompile(`(?i)^(?:.*[-_.])?(?:global[-_]?step|step|checkpoint|ckpt|iter(?:ation)?)[-_]?(\d+)(?:\D.*)?$`)
}

// FindSeries looks for checkpoints in each root: the root itself, or the folders in
// it. The step is the first group of pattern in the folder's name; when pattern is
// nil it is the global_step of trainer_state.json, else what a usual name says.
func FindSeries(roots []string, pattern *regexp.Regexp) (*Series, error) {
	s := &Series{}
	for _, root := range roots {
		dirs, err := candidates(root)
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			step, ok, err := stepOf(dir, pattern)
			if err != nil {
				return nil, err
			}
			if ok {
				s.Steps = append(s.Steps, Step{Dir: dir, Step: step})
			} else {
				s.Ignored = append(s.Ignored, dir)
			}
		}
	}
	slices.SortStableFunc(s.Steps, func(a, b Step) int { return cmp.Compare(a.Step, b.Step) })
	for i := 1; i < len(s.Steps); i++ {
		if a, b := s.Steps[i-1], s.Steps[i]; a.Step == b.Step {
			return nil, &Error{Op: "series", File: b.Dir, Err: ErrFormat,
				Reason: fmt.Sprintf("is of step %d, and so is %s", b.Step, a.Dir), Hint: "say with a pattern which folders belong to the run"}
		}
	}
	return s, nil
}

// candidates lists the checkpoint folders at or in root.
func candidates(root string) ([]string, error) {
	if isCheckpoint(root) {
		return []string{root}, nil
	}
	items, err := os.ReadDir(root)
	if err != nil {
		return nil, system("series", root, err)
	}
	var dirs []string
	for _, item := range items {
		dir := filepath.Join(root, item.Name())
		if info, err := os.Stat(dir); err == nil && info.IsDir() && item.Type()&os.ModeSymlink == 0 && isCheckpoint(dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

func isCheckpoint(dir string) bool {
	_, distributed := distributedIn(dir)
	return distributed || isShards(dir) || len(cutShards(dir)) > 0
}

func stepOf(dir string, pattern *regexp.Regexp) (int64, bool, error) {
	if pattern == nil {
		if step, ok, err := trainerStep(dir); ok || err != nil {
			return step, ok, err
		}
		pattern = usualName()
	}
	groups := pattern.FindStringSubmatch(filepath.Base(filepath.Clean(dir)))
	if len(groups) < 2 {
		return 0, false, nil
	}
	step, err := strconv.ParseInt(groups[1], 10, 64)
	if err != nil {
		return 0, false, &Error{Op: "series", File: dir, Reason: fmt.Sprintf("step %q is not a number", groups[1]), Hint: "let the first group of the pattern match digits", Err: ErrFormat}
	}
	return step, true, nil
}

func trainerStep(dir string) (int64, bool, error) {
	path := filepath.Join(dir, trainerState)
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, system("series", path, err)
	}
	var state struct {
		GlobalStep *int64 `json:"global_step"`
	}
	if err := json.Unmarshal(text, &state); err != nil || state.GlobalStep == nil {
		return 0, false, &Error{Op: "series", File: path, Reason: "has no global_step", Err: ErrFormat}
	}
	return *state.GlobalStep, true, nil
}

// Select takes n checkpoints, interval steps apart, of which the newest is at step
// end. An interval of 0 takes those next to each other; an end of 0 is the newest
// there is; an n of 0 is as many as there are.
func (s *Series) Select(n int, interval, end int64) ([]Step, error) {
	last := len(s.Steps) - 1
	if end > 0 {
		last = slices.IndexFunc(s.Steps, func(c Step) bool { return c.Step == end })
	}
	if len(s.Steps) == 0 {
		e := &Error{Op: "series", Reason: "no checkpoint was found", Hint: "name checkpoints, or the folder that holds them", Err: os.ErrNotExist}
		if len(s.Ignored) > 0 {
			e.Reason, e.Hint = "the step of no checkpoint is known, such as that of "+s.Ignored[0], "say with a pattern what of the folder's name is the step"
		}
		return nil, e
	}
	if last < 0 {
		return nil, &Error{Op: "series", Reason: fmt.Sprintf("there is no checkpoint of step %d", end), Hint: "there are: " + s.list(), Err: os.ErrNotExist}
	}
	var picked []Step
	next := s.Steps[last].Step
	for i := last; i >= 0 && (n == 0 || len(picked) < n); i-- {
		if c := s.Steps[i]; interval == 0 || c.Step == next {
			picked = append(picked, c)
			next -= interval
		}
	}
	if len(picked) < n {
		return nil, &Error{Op: "series", Reason: fmt.Sprintf("%d checkpoints %s, want %d", len(picked), apart(interval), n),
			Hint: "there are: " + s.list(), Err: os.ErrNotExist}
	}
	slices.Reverse(picked)
	return picked, nil
}

func apart(interval int64) string {
	if interval == 0 {
		return "up to the end"
	}
	return fmt.Sprintf("%d steps apart up to the end", interval)
}

func (s *Series) list() string {
	text := ""
	for i, c := range s.Steps {
		if i > 0 {
			text += ", "
		}
		text += strconv.FormatInt(c.Step, 10)
	}
	return text
}
