package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// memoryNotMeasured are the fuzz tests, by package and name, in which nothing that comes from outside can ask for memory,
// or is bounded in another way; with the reason.
var memoryNotMeasured = map[string]string{
	"dlm FuzzResults":                     "a result is read into a buffer that is there already",
	"internal/audit FuzzLine":             "it is about what is written, and asserts how long that is",
	"internal/backend/cluster FuzzRecord": "a lock value block has 32 bytes",
	"internal/rpc FuzzInbound":            "it asserts how large the only buffer is; FuzzLockSocket and FuzzDecoder measure the rest",
}

// TestFuzzTests: each of them measures how much memory what it is given takes, and has a corpus in the repository, so that
// also a test without -fuzz tries what long fuzzing has found.
func TestFuzzTests(t *testing.T) {
	seen := map[string]bool{}
	for file, text := range texts(t) {
		if !strings.HasSuffix(file, "_test.go") || !strings.Contains(text, "func Fuzz") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range tree.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(f.Name.Name, "Fuzz") {
				continue
			}
			name := path.Dir(file) + " " + f.Name.Name
			seen[name] = true
			measured := false
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				switch f := call.Fun.(type) {
				case *ast.SelectorExpr:
					pkg, ok := f.X.(*ast.Ident)
					measured = measured || ok && pkg.Name == "testenv" && (f.Sel.Name == "Bounded" || f.Sel.Name == "Allocated")
				case *ast.Ident:
					measured = measured || f.Name == "bounded" // of tests/hostile
				}
				return true
			})
			if _, excepted := memoryNotMeasured[name]; measured == excepted {
				t.Errorf("%s: memory is measured: %v, and it is an exception: %v", name, measured, excepted)
			}
			corpus, err := filepath.Glob(filepath.Join("../..", path.Dir(file), "testdata/fuzz", f.Name.Name, "*"))
			if err != nil || len(corpus) == 0 {
				t.Errorf("%s has no corpus: copy what 'make fuzz' has found from $(go env GOCACHE)/fuzz (%v)", name, err)
			}
		}
	}
	for name := range memoryNotMeasured {
		if !seen[name] {
			t.Errorf("there is no %s", name)
		}
	}
	if len(seen) < 40 {
		t.Errorf("only %d fuzz tests were found", len(seen))
	}
}
