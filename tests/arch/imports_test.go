// Package arch tests the shape of the project: who may import whom.
package arch

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/trivium-ml/trivium/"

// rule says what the packages under a folder may import of the project, and
// which modules from outside they must not.
type rule struct {
	folder string
	may    []string // folders of the project, besides its own
	mayNot []string // import paths from outside, by prefix
}

const (
	arrow    = "github.com/apache/arrow"
	goPlugin = "github.com/hashicorp/go-plugin"
	grpc     = "google.golang.org/grpc"
	cgo      = "C"
)

// The most specific folder wins.
var rules = []rule{
	{folder: "core", mayNot: []string{grpc, goPlugin, cgo, arrow}},
	{folder: "core/tensor", may: []string{}, mayNot: []string{grpc, goPlugin, cgo}},
	{folder: "core/tensor/cbridge", may: []string{"core"}, mayNot: []string{grpc, goPlugin}},
	{folder: "core/checkpoint", may: []string{"core"}, mayNot: []string{grpc, goPlugin, cgo, arrow}},
	{folder: "hardware", mayNot: []string{grpc, goPlugin, arrow}},
	{folder: "strategies/all", may: []string{"core", "hardware", "strategies"}, mayNot: []string{grpc, goPlugin, arrow}},
	{folder: "strategies/attention", may: []string{"core", "hardware", "strategies/internal"}, mayNot: []string{grpc, goPlugin, arrow, cgo}},
	{folder: "strategies/position", may: []string{"core"}, mayNot: []string{grpc, goPlugin, arrow, cgo}},
	{folder: "strategies/merge", may: []string{"core", "hardware", "strategies/internal"}, mayNot: []string{grpc, goPlugin, arrow, cgo}},
	{folder: "plugins/proto", mayNot: []string{goPlugin, arrow, cgo}},
	{folder: "plugins/lane", mayNot: []string{grpc, goPlugin, arrow, cgo}},
	{folder: "plugins/shm", mayNot: []string{grpc, goPlugin, arrow, cgo}},
	{folder: "plugins/wire", may: []string{"core", "plugins/proto", "plugins/shm"}, mayNot: []string{goPlugin, arrow, cgo}},
	{folder: "plugins/confine", may: []string{}, mayNot: []string{grpc, goPlugin, arrow, cgo}},
	{folder: "plugins/host", may: []string{"core", "plugins", "plugins/confine", "plugins/lane", "plugins/proto", "plugins/shm", "plugins/wire"}, mayNot: []string{arrow, cgo}},
	{folder: "plugins/sdk", may: []string{"core", "plugins", "plugins/lane", "plugins/proto", "plugins/shm", "plugins/wire"}, mayNot: []string{arrow, cgo}},
	{folder: "plugins/sdk/sdktest", may: []string{"core", "plugins", "plugins/confine", "plugins/host", "plugins/proto", "plugins/sdk", "plugins/shm", "plugins/wire"}, mayNot: []string{arrow, cgo}},
	{folder: "plugins/template", may: []string{"core", "plugins/sdk"}, mayNot: []string{grpc, goPlugin, arrow, cgo}},
	{folder: "plugins/builtin", may: []string{"core", "hardware", "plugins/sdk", "strategies"}, mayNot: []string{goPlugin, arrow}},
	{folder: "pybind", may: []string{"core", "plugins/host", "plugins/shm"}, mayNot: []string{goPlugin, arrow}},
}

type listed struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var found []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		found = append(found, p)
	}
	if len(found) < 10 {
		t.Fatalf("found %d packages, want the whole module", len(found))
	}
	return found
}

func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

func ruleOf(path string) (rule, bool) {
	best, found := rule{}, false
	for _, r := range rules {
		if within(path, r.folder) && len(r.folder) >= len(best.folder) {
			best, found = r, true
		}
	}
	return best, found
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		r, ok := ruleOf(path)
		if !ok {
			continue
		}
		for _, imported := range p.Imports {
			if complaint := r.check(path, imported); complaint != "" {
				t.Errorf("%s imports %s: %s", path, imported, complaint)
			}
		}
	}
}

func (r rule) check(path, imported string) string {
	if strings.HasPrefix(imported, module) {
		return r.checkOwn(path, strings.TrimPrefix(imported, module))
	}
	for _, forbidden := range r.mayNot {
		if imported == forbidden || strings.HasPrefix(imported, forbidden+"/") {
			return "forbidden in " + r.folder
		}
	}
	return ""
}

func (r rule) checkOwn(path, imported string) string {
	if within(imported, "tests") {
		return "nobody imports tests"
	}
	if own := attentionStrategy(path); own != "" && attentionStrategy(imported) != "" && attentionStrategy(imported) != own {
		return "strategies do not import each other"
	}
	if within(imported, r.folder) {
		return ""
	}
	allowed := slices.ContainsFunc(r.may, func(folder string) bool {
		// "plugins" alone is the package, not the tree.
		return imported == folder || folder != "plugins" && within(imported, folder)
	})
	if !allowed {
		return r.folder + " may import " + strings.Join(r.may, ", ") + " only"
	}
	return ""
}

// attentionStrategy is the name of the attention strategy whose folder path is
// in; the shared runner and internal packages belong to none.
func attentionStrategy(path string) string {
	rest, ok := strings.CutPrefix(path, "strategies/attention/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	if name == "kernel" || name == "internal" {
		return ""
	}
	return name
}

// Only the host and the sdk speak to go-plugin, only core/tensor to Arrow.
func TestOnlyOneDoor(t *testing.T) {
	doors := map[string][]string{
		goPlugin: {"plugins/host", "plugins/sdk"},
		arrow:    {"core/tensor"},
	}
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		for library, folders := range doors {
			uses := slices.ContainsFunc(p.Imports, func(i string) bool { return strings.HasPrefix(i, library) })
			if uses && !slices.ContainsFunc(folders, func(f string) bool { return within(path, f) }) {
				t.Errorf("%s imports %s: only %s may", path, library, strings.Join(folders, " and "))
			}
		}
	}
}

// The test itself must be able to fail.
func TestRulesCatch(t *testing.T) {
	cases := []struct{ path, imported string }{
		{"core", grpc},
		{"core/checkpoint", cgo},
		{"plugins/host", module + "plugins/sdk"},
		{"plugins/sdk", module + "hardware/cpu"},
		{"strategies/attention/dense", module + "strategies/attention/flexprefill"},
		{"strategies/position", module + "hardware"},
		{"hardware/cpu", module + "core"},
		{"core", module + "tests/golden"},
	}
	for _, c := range cases {
		r, ok := ruleOf(c.path)
		if !ok || r.check(c.path, c.imported) == "" {
			t.Errorf("%s importing %s is not caught", c.path, c.imported)
		}
	}
}
