package pybind

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// Every function that Python can call must recover from panics, refuse forked
// processes and have a signature that gopy binds without leaking: it drops some
// silently, and an `error` alone leaks at each call.
func TestEveryExportIsGuarded(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, f := range exportedFunctions(t, file) {
			seen++
			checkExport(t, f)
		}
	}
	if seen < 6 {
		t.Fatalf("found %d exported functions, want at least 6", seen)
	}
}

func exportedFunctions(t *testing.T, file string) []*ast.FuncDecl {
	tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var found []*ast.FuncDecl
	for _, d := range tree.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.IsExported() {
			found = append(found, f)
		}
	}
	return found
}

func checkExport(t *testing.T, f *ast.FuncDecl) {
	source := sourceOf(t, f)
	if !strings.HasPrefix(source, "defer guard(&err)\nif err := refuseForked(); err != nil {") {
		t.Errorf("%s: want the body to begin with defer guard(&err) and refuseForked()", f.Name.Name)
	}
	for _, p := range f.Type.Params.List {
		if name, ok := p.Type.(*ast.Ident); !ok || (name.Name != "string" && name.Name != "int64") {
			t.Errorf("%s: want parameters of string and int64 only", f.Name.Name)
		}
	}
	results := f.Type.Results.List
	if len(results) != 2 {
		t.Errorf("%s: want (string|int64, error)", f.Name.Name)
		return
	}
	first, ok := results[0].Type.(*ast.Ident)
	if !ok || (first.Name != "string" && first.Name != "int64") {
		t.Errorf("%s: want (string|int64, error)", f.Name.Name)
	}
}

// sourceOf gives the first two statements of a function, a line each.
func sourceOf(t *testing.T, f *ast.FuncDecl) string {
	if len(f.Body.List) < 2 {
		t.Errorf("%s: too short to be guarded", f.Name.Name)
		return ""
	}
	deferred, ok := f.Body.List[0].(*ast.DeferStmt)
	if !ok {
		return ""
	}
	guarded, ok := deferred.Call.Fun.(*ast.Ident)
	if !ok || guarded.Name != "guard" {
		return ""
	}
	refusal, ok := f.Body.List[1].(*ast.IfStmt)
	if !ok {
		return ""
	}
	assign, ok := refusal.Init.(*ast.AssignStmt)
	if !ok {
		return ""
	}
	call, ok := assign.Rhs[0].(*ast.CallExpr)
	if !ok {
		return ""
	}
	if name, ok := call.Fun.(*ast.Ident); !ok || name.Name != "refuseForked" {
		return ""
	}
	return "defer guard(&err)\nif err := refuseForked(); err != nil {"
}
