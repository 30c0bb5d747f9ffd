// A closed-loop load for etcd with its own client, for bench.commits and bench.reads.
//
// Prints one line of JSON: calls, seconds, and the latencies' p50 and p99 in milliseconds.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func main() {
	endpoint := flag.String("endpoint", "127.0.0.1:2379", "HOST:PORT of one member")
	clients := flag.Int("clients", 1, "concurrent callers")
	connections := flag.Int("connections", 1, "connections that they share")
	seconds := flag.Float64("seconds", 2, "how long")
	operation := flag.String("operation", "put", "put or get (linearizable)")
	size := flag.Int("value-bytes", 200, "size of a value")
	flag.Parse()

	var handles []*clientv3.Client
	for range *connections {
		handle, err := clientv3.New(clientv3.Config{
			Endpoints: []string{*endpoint}, DialTimeout: 5 * time.Second,
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		handles = append(handles, handle)
	}
	value := strings.Repeat("x", *size)
	call := func(handle *clientv3.Client, key string) error {
		var err error
		if *operation == "get" {
			_, err = handle.Get(context.Background(), key)
		} else {
			_, err = handle.Put(context.Background(), key, value)
		}
		return err
	}
	for number, handle := range handles { // connects; the keys exist from now on
		if _, err := handle.Put(context.Background(), fmt.Sprintf("bench/%d", number), value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	took := make([][]float64, *clients)
	var waiting sync.WaitGroup
	started := time.Now()
	end := started.Add(time.Duration(*seconds * float64(time.Second)))
	for number := range *clients {
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			handle := handles[number%len(handles)]
			key := fmt.Sprintf("bench/%d", number)
			for time.Now().Before(end) {
				before := time.Now()
				if err := call(handle, key); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				took[number] = append(took[number], time.Since(before).Seconds()*1000)
			}
		}()
	}
	waiting.Wait()
	elapsed := time.Since(started).Seconds()
	var all []float64
	for _, some := range took {
		all = append(all, some...)
	}
	sort.Float64s(all)
	at := func(fraction float64) float64 { return all[min(len(all)-1, int(fraction*float64(len(all))))] }
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"calls": len(all), "seconds": elapsed, "p50_ms": at(0.5), "p99_ms": at(0.99),
	})
}
