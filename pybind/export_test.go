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
	if len(f.Body.List) < 2 || !defersGuard(f.Body.List[0]) || !refusesForked(f.Body.List[1]) {
		t.Errorf("%s: want the body to begin with defer guard(&err) and refuseForked()", f.Name.Name)
	}
	for _, p := range f.Type.Params.List {
		if !crosses(p.Type) {
			t.Errorf("%s: want parameters of string and int64 only", f.Name.Name)
		}
	}
	results := f.Type.Results.List
	if len(results) != 2 || !crosses(results[0].Type) || !isName(results[1].Type, "error") {
		t.Errorf("%s: want (string|int64, error)", f.Name.Name)
	}
}

// crosses says whether gopy passes the type without a handle.
func crosses(e ast.Expr) bool { return isName(e, "string") || isName(e, "int64") }

func isName(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

func defersGuard(s ast.Stmt) bool {
	d, ok := s.(*ast.DeferStmt)
	return ok && isName(d.Call.Fun, "guard")
}

func refusesForked(s ast.Stmt) bool {
	branch, ok := s.(*ast.IfStmt)
	if !ok {
		return false
	}
	assign, ok := branch.Init.(*ast.AssignStmt)
	if !ok {
		return false
	}
	call, ok := assign.Rhs[0].(*ast.CallExpr)
	return ok && isName(call.Fun, "refuseForked")
}
