// What a generated client in Java does: java Client URL KEY.
import com.fasterxml.jackson.databind.ObjectMapper;
import crucible.ApiClient;
import crucible.ApiException;
import crucible.api.EventsApi;
import crucible.api.EventsApi.*;
import crucible.api.MemoryApi;
import crucible.api.MemoryApi.*;
import crucible.api.WebhooksApi;
import crucible.model.*;
import java.util.*;
import java.util.stream.Collectors;

public class Client {
  public static void main(String[] arguments) throws Exception {
    ApiClient client = new ApiClient();
    client.updateBaseUri(arguments[0]);
    client.setRequestInterceptor(request -> request.header("Authorization", "Bearer " + arguments[1]));
    EventsApi events = new EventsApi(client);
    MemoryApi memories = new MemoryApi(client);
    WebhooksApi webhooks = new WebhooksApi(client);
    Map<String, Object> told = new LinkedHashMap<>();

    SentEvent event = new SentEvent().type("Custom.Java").payload(Map.of("n", 1));
    AppendedEvent appended = events.appendEvent(APIAppendEventRequest.newBuilder().sentEvent(event).build());
    Committed batch =
        events.appendBatch(APIAppendBatchRequest.newBuilder().sentEvent(List.of(event, event)).build());
    Long last = batch.getResults().get(1).getSequence();
    List<String> types = List.of("Custom.Java");
    QueryReply page =
        events.queryEvents(APIQueryEventsRequest.newBuilder().type(types).minSequence(last).build());
    told.put("appended", List.of(appended.getId(), appended.getType()));
    told.put("committed", batch.getCommitted());
    told.put("listed", map(page.getEvents(), each -> ((Map<?, ?>) each.getData().getPayload()).get("n")));
    Metadata first = page.getEvents().get(0).getMetadata();
    told.put("first", List.of(first.getId(), first.getTimestamp().getYear()));

    SentMemory memory =
        new SentMemory()
            .content("The Java client remembers")
            .tags(List.of("#java"))
            .links(
                List.of(
                    new SentLink("mem_other"),
                    new SentLink(new Reference().to("On logs"))));
    Written written = memories.createMemory(memory, "java");
    APIGetMemoryRequest wantedMemory = APIGetMemoryRequest.newBuilder().id(written.getId()).build();
    told.put("links", map(memories.getMemory(wantedMemory).getLinks(), Link::getTarget));
    MemoryQuery query =
        new MemoryQuery().text("remembers").tags(List.of("#java")).minSequence(written.getSequence());
    told.put("found", map(memories.queryMemory(query).getMemories(), ScoredMemory::getContent));

    TypeFilter filter = new TypeFilter().eventType("Custom.Java");
    CreateWebhook wanted =
        new CreateWebhook().name("java").url("http://127.0.0.1:9/").eventFilters(List.of(filter));
    WebhookView webhook = webhooks.createWebhook(wanted);
    List<String> known = map(webhooks.listWebhooks(1000, null).getWebhooks(), WebhookView::getId);
    told.put("webhook", List.of(webhook.getName(), known.contains(webhook.getId())));

    ObjectMapper json = ApiClient.createDefaultObjectMapper();
    try {
      SentEvent wrong = new SentEvent().type("Memory.Creatd");
      events.appendEvent(APIAppendEventRequest.newBuilder().sentEvent(wrong).build());
      throw new IllegalStateException("it was not refused");
    } catch (ApiException refused) {
      ProblemDocument problem = json.readValue(refused.getResponseBody(), ProblemDocument.class);
      told.put("refused", List.of(problem.getStatus(), problem.getErrors().get(0).getSuggestion()));
    }
    System.out.println(json.writeValueAsString(told));
  }

  private static <T, R> List<R> map(List<T> items, java.util.function.Function<? super T, ? extends R> of) {
    return items.stream().map(of).collect(Collectors.toList());
  }
}
