package cli

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// sure asks on the terminal whether to go on with what, an option or a command. before
// ends with the question; declined says what has not been done then.
func (a *app) sure(what, before, declined string) error {
	in, ok := a.In.(*os.File)
	if !ok || !isTerminal(in) {
		return usage("%s asks a question, and there is no terminal to ask on: add --yes if you are sure", what)
	}
	fmt.Fprintf(a.Err, "%s Type yes: ", before)
	answer, _ := bufio.NewReader(in).ReadString('\n')
	if strings.TrimSpace(answer) != "yes" {
		return failed(exitFailed, "declined", "%s", declined)
	}
	return nil
}
