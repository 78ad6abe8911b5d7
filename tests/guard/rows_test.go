package guard_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Every fault that a test names in so many words has its row in docs/faults.md, with what happened when it was played, or is listed there
// as one that was not.
func TestEveryFaultHasARow(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "faults.md"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 1 {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || f.Sel.Name != "fault" {
				return true
			}
			text, ok := call.Args[0].(*ast.BasicLit)
			if !ok {
				return true // it is put together
			}
			what, err := strconv.Unquote(text.Value)
			if err != nil {
				t.Fatal(err)
			}
			found++
			played, listed := strings.Contains(string(page), "\n| "+what+" | "), strings.Contains(string(page), "\n* *"+what+"*")
			if played == listed {
				t.Errorf("%s: %q has a row in docs/faults.md: %v; is listed as not played: %v. VMLOCKD_FAULTS has the case that plays it write its row", name, what, played, listed)
			}
			return true
		})
	}
	if found < 20 {
		t.Errorf("only %d faults were found: it is looked at in the wrong way", found)
	}
}
