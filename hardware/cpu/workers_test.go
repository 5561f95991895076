package cpu

import (
	"context"
	"sync"
	"testing"
)

// Every item is done once, whoever does it, and what is said to follow is of the same queue.
func TestForEachQueued(t *testing.T) {
	for _, c := range []struct {
		name    string
		ends    []int
		threads int
	}{{"none", nil, 2}, {"one", []int{5}, 3}, {"as many as threads", []int{4, 9}, 2}, {"few long", []int{1, 40, 41}, 4}, {"many", []int{3, 3, 10, 12, 20}, 2}} {
		t.Run(c.name, func(t *testing.T) {
			var list []queue
			of, first := map[int]int{}, 0
			for i, end := range c.ends {
				list = append(list, queue{next: first, end: end})
				for ; first < end; first++ {
					of[first] = i
				}
			}
			var lock sync.Mutex
			done := map[int]int{}
			err := forEachQueued(context.Background(), c.threads, list, func(_, item, following int) {
				lock.Lock()
				defer lock.Unlock()
				done[item]++
				if following >= 0 && (following <= item || of[following] != of[item]) {
					t.Errorf("item %d is followed by %d of another queue", item, following)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			for i := range first {
				if done[i] != 1 {
					t.Errorf("item %d was done %d times", i, done[i])
				}
			}
		})
	}
	if err := forEachQueued(cancelledContext(), 2, []queue{{end: 3}}, func(_, item, _ int) { t.Errorf("item %d of a cancelled call", item) }); err == nil {
		t.Error("a cancelled call reports success")
	}
}
