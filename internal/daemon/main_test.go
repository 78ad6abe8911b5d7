package daemon

import (
	"os"
	"testing"

	"github.com/vmlockd/vmlockd/internal/holder"
)

func TestMain(m *testing.M) {
	holder.Main() // tests start one, of this program
	os.Exit(m.Run())
}
