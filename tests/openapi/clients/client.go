// What a generated client in Go does: client URL KEY.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"

	crucible "local/crucible"
)

func must[T any](value T, _ any, err error) T {
	if err != nil {
		var refused *crucible.GenericOpenAPIError
		if errors.As(err, &refused) {
			log.Fatal(err, string(refused.Body()))
		}
		log.Fatal(err)
	}
	return value
}

func main() {
	config := crucible.NewConfiguration()
	config.Servers = crucible.ServerConfigurations{{URL: os.Args[1]}}
	client := crucible.NewAPIClient(config)
	ctx := context.WithValue(context.Background(), crucible.ContextAccessToken, os.Args[2])

	event := crucible.NewSentEvent("Custom.Go")
	event.SetPayload(map[string]interface{}{"n": 1})
	appended := must(client.EventsAPI.AppendEvent(ctx).SentEvent(*event).Execute())
	batch := must(client.EventsAPI.AppendBatch(ctx).SentEvent([]crucible.SentEvent{*event, *event}).Execute())
	last := batch.Results[1].GetSequence()
	page := must(client.EventsAPI.QueryEvents(ctx).Type_([]string{"Custom.Go"}).MinSequence(last).Execute())
	listed := []any{}
	for _, each := range page.Events {
		listed = append(listed, each.Data.Payload["n"])
	}

	memory := crucible.NewSentMemory("The Go client remembers")
	other := "mem_other"
	memory.SetTags([]string{"#go"})
	memory.SetLinks([]crucible.SentLink{{String: &other}, {Reference: crucible.NewReference("On logs")}})
	written := must(client.MemoryAPI.CreateMemory(ctx).SentMemory(*memory).IdempotencyKey("go").Execute())
	view := must(client.MemoryAPI.GetMemory(ctx, written.Id).Execute())
	links := []string{}
	for _, link := range view.Links {
		links = append(links, link.Target)
	}
	query := crucible.NewMemoryQuery()
	query.SetText("remembers")
	query.SetTags([]string{"#go"})
	query.SetMinSequence(written.Sequence)
	found := []string{}
	for _, each := range must(client.MemoryAPI.QueryMemory(ctx).MemoryQuery(*query).Execute()).Memories {
		found = append(found, each.Content)
	}

	filters := []crucible.TypeFilter{*crucible.NewTypeFilter("Custom.Go")}
	hook := crucible.NewCreateWebhook("go", "http://127.0.0.1:9/", filters)
	webhook := must(client.WebhooksAPI.CreateWebhook(ctx).CreateWebhook(*hook).Execute())
	known := false
	for _, each := range must(client.WebhooksAPI.ListWebhooks(ctx).Execute()).Webhooks {
		known = known || each.Id == webhook.Id
	}

	_, _, err := client.EventsAPI.AppendEvent(ctx).SentEvent(*crucible.NewSentEvent("Memory.Creatd")).Execute()
	var refusal *crucible.GenericOpenAPIError
	if !errors.As(err, &refusal) {
		log.Fatal("it was not refused")
	}
	problem := refusal.Model().(crucible.ProblemDocument)

	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"appended":  []any{appended.Id, appended.Type},
		"committed": batch.Committed,
		"listed":    listed,
		"first":     []any{page.Events[0].Metadata.Id, page.Events[0].Metadata.Timestamp.Year()},
		"links":     links,
		"found":     found,
		"webhook":   []any{webhook.Name, known},
		"refused":   []any{problem.Status, problem.Errors[0].GetSuggestion()},
	})
}
