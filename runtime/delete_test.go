package runtime

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// To delete an ended container, the runtime is called once and does not kill:
// runc waits 100 ms after a kill.
func TestDeleteCalls(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		name   string
		script string
		end    func(CreateRequest)
		want   []string
	}{
		{"ended", "exit 3", func(r CreateRequest) { n.exit(r.ID) }, []string{"delete ID"}},
		{"killed by delete", "sleep 1000", func(CreateRequest) {}, []string{"delete ID"}},
		{"ended before the shim's death", "exit 3", func(r CreateRequest) { n.exit(r.ID); n.killShim() }, []string{"delete ID"}},
		{"ended, but the runtime refuses", "exit 3", func(r CreateRequest) {
			n.exit(r.ID)
			data, err := os.ReadFile(r.Runtime.Path)
			if err != nil {
				t.Fatal(err)
			}
			script := strings.Replace(string(data), "exec ", "case \"$*\" in *force*) ;; *delete*) exit 1;; esac\nexec ", 1)
			if err := os.WriteFile(r.Runtime.Path, []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}, []string{"delete ID", "delete --force ID"}},
	} {
		req := n.shell(c.script)
		calls := n.counting(&req)
		n.run(req)
		c.end(req)
		began := time.Now()
		if err := n.Delete(n.ctx, req); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		t.Logf("%s: %v", c.name, time.Since(began))
		if _, err := os.Stat(req.Runtime.Root + "/" + req.ID); !os.IsNotExist(err) {
			t.Errorf("%s: the runtime's state: %v", c.name, err)
		}
		if got := calls()[2:]; !slices.Equal(got, c.want) { // after create and start
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
