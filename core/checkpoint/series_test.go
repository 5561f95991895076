package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// folders makes empty checkpoints; a value is the content of trainer_state.json.
func folders(t *testing.T, names map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, state := range names {
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, singleName), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if state != "" {
			if err := os.WriteFile(filepath.Join(dir, trainerState), []byte(state), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func TestStepsOfFolders(t *testing.T) {
	cases := []struct {
		name, folder, state, pattern string
		want                         int64 // -1: ignored
	}{
		{"step", "step-00800", "", "", 800},
		{"trainer", "checkpoint-500", "", "", 500},
		{"state beats name", "checkpoint-500", `{"global_step": 501}`, "", 501},
		{"state of an unnamed folder", "last", `{"global_step": 7}`, "", 7},
		{"megatron", "iter_0001000", "", "", 1000},
		{"deepspeed", "global_step1200", "", "", 1200},
		{"olmo", "step1000-tokens4B", "", "", 1000},
		{"prefixed", "run3-step-40", "", "", 40},
		{"another stage", "annealed-01800", "", "", -1},
		{"pattern", "annealed-01800", "", `^annealed-(\d+)$`, 1800},
		{"pattern beats state", "run-12", `{"global_step": 501}`, `run-(\d+)`, 12},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			root := folders(t, map[string]string{c.folder: c.state})
			var pattern *regexp.Regexp
			if c.pattern != "" {
				pattern = regexp.MustCompile(c.pattern)
			}
			s, err := FindSeries([]string{root}, pattern)
			if err != nil {
				t.Fatal(err)
			}
			if c.want < 0 {
				if len(s.Steps) != 0 || len(s.Ignored) != 1 {
					t.Errorf("series %+v, want it ignored", s)
				}
				return
			}
			if len(s.Steps) != 1 || s.Steps[0].Step != c.want {
				t.Errorf("series %+v, want step %d", s, c.want)
			}
		})
	}
}

func TestTwoCheckpointsOfOneStep(t *testing.T) {
	root := folders(t, map[string]string{"step-10": "", "checkpoint-10": ""})
	_, err := FindSeries([]string{root}, nil)
	wantError(t, err, ErrFormat, root, "pattern")
}

func TestSelect(t *testing.T) {
	s := &Series{}
	for i := range 6 { // 100, 200, .. 600
		s.Steps = append(s.Steps, Step{Dir: fmt.Sprint(i), Step: int64(100 * (i + 1))})
	}
	cases := []struct {
		n             int
		interval, end int64
		want          string
	}{
		{3, 0, 0, "[400 500 600]"},
		{3, 200, 0, "[200 400 600]"},
		{2, 100, 300, "[200 300]"},
		{0, 200, 500, "[100 300 500]"},
		{0, 0, 0, "[100 200 300 400 500 600]"},
	}
	for _, c := range cases {
		picked, err := s.Select(c.n, c.interval, c.end)
		if err != nil {
			t.Fatal(err)
		}
		steps := []int64{}
		for _, p := range picked {
			steps = append(steps, p.Step)
		}
		if got := fmt.Sprint(steps); got != c.want {
			t.Errorf("select(%d, %d, %d) = %s, want %s", c.n, c.interval, c.end, got, c.want)
		}
	}
	for _, c := range []struct{ n, interval, end int64 }{{4, 200, 0}, {7, 0, 0}, {1, 0, 650}} {
		_, err := s.Select(int(c.n), c.interval, c.end)
		wantError(t, err, os.ErrNotExist, "100, 200, 300")
	}
	_, err := (&Series{}).Select(0, 0, 0)
	wantError(t, err, os.ErrNotExist, "no checkpoint was found")
	_, err = (&Series{Ignored: []string{"runs/final"}}).Select(2, 0, 0)
	wantError(t, err, os.ErrNotExist, "runs/final", "pattern")
}
