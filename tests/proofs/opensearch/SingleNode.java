import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.transport.Netty4Plugin;

/** One OpenSearch node in this process: port and folder are the arguments. */
final class SingleNode extends Node {
    private SingleNode(Environment environment) {
        super(environment, List.of(Netty4Plugin.class), false);
    }

    public static void main(String[] arguments) throws Exception {
        Settings settings = Settings.builder()
            .put("node.name", "proof")
            .put("cluster.name", "proof")
            .put("discovery.type", "single-node")
            .put("transport.type", "netty4")
            .put("http.type", "netty4")
            .put("http.port", arguments[0])
            .put("transport.port", "0")
            .put("indices.mapping.dynamic_timeout", "5m")
            .put("path.home", arguments[1])
            .build();
        Environment environment =
            InternalSettingsPreparer.prepareEnvironment(settings, Map.of(), null, () -> "proof");
        Node node = new SingleNode(environment).start();
        System.out.println("ready");
        System.in.read();
        node.close();
    }
}
