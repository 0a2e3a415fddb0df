import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.time.Duration;
import java.util.Map;
import java.util.TreeMap;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/**
 * Prints the answer to a signed getBalance. Needs only a JDK, 11 or later:
 *
 * <pre>
 * export SPOTLEDGER_URL=http://127.0.0.1:8080
 * export SPOTLEDGER_ACCESSKEY=...  SPOTLEDGER_SECRETKEY=...
 * java GetBalance.java
 * </pre>
 *
 * Exits with 0 for a success, 1 for a refusal or no answer, 2 if a variable is missing.
 */
public class GetBalance {

    /** Matches the code in the body. It is a number, so a coin called "code" does not match: its value is an object. */
    private static final Pattern CODE = Pattern.compile("\"code\"\\s*:\\s*([0-9]+)\\s*[,}]");

    public static void main(String[] arguments) throws GeneralSecurityException, InterruptedException {
        String url = System.getenv().getOrDefault("SPOTLEDGER_URL", "http://127.0.0.1:8080");
        String accessKey = required("SPOTLEDGER_ACCESSKEY");
        String secretKey = required("SPOTLEDGER_SECRETKEY");

        Map<String, String> params = new TreeMap<>();
        params.put("accesskey", accessKey);
        params.put("nonce", String.valueOf(System.currentTimeMillis()));
        params.put("signature", getSignature(params, secretKey));

        System.exit(printAnswer(url.replaceAll("/+\\z", "") + "/trade/api/v1/getBalance", params));
    }

    /** Signs the parameters: sort by name, join name=value with &amp;, HMAC-SHA256, hex. */
    static String getSignature(Map<String, String> params, String secretKey) throws GeneralSecurityException {
        String text = new TreeMap<>(params).entrySet().stream()
                .filter(pair -> !pair.getKey().equals("signature") && !pair.getValue().isEmpty())
                .map(pair -> pair.getKey() + "=" + pair.getValue())
                .collect(Collectors.joining("&"));
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(secretKey.getBytes(StandardCharsets.UTF_8), "HmacSHA256"));
        StringBuilder hex = new StringBuilder();
        for (byte part : mac.doFinal(text.getBytes(StandardCharsets.UTF_8))) {
            hex.append(String.format("%02x", part));
        }
        return hex.toString();
    }

    /** Sends the request once, prints the body of the answer, and returns the exit code. Follows no redirects. */
    private static int printAnswer(String url, Map<String, String> params) throws InterruptedException {
        String query = params.entrySet().stream()
                .map(pair -> encode(pair.getKey()) + "=" + encode(pair.getValue()))
                .collect(Collectors.joining("&"));
        HttpClient client = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(5)).build();
        HttpRequest request = HttpRequest.newBuilder(URI.create(url + "?" + query))
                .timeout(Duration.ofSeconds(10)).GET().build();
        HttpResponse<String> response;
        try {
            response = client.send(request, HttpResponse.BodyHandlers.ofString(StandardCharsets.UTF_8));
        } catch (IOException error) {
            System.err.println("no answer: " + error.getClass().getSimpleName());
            return 1;
        }
        System.out.println(response.body());
        Matcher code = CODE.matcher(response.body());
        boolean success = response.statusCode() == 200 && code.find() && code.group(1).equals("200");
        return success ? 0 : 1;
    }

    private static String encode(String text) {
        return URLEncoder.encode(text, StandardCharsets.UTF_8);
    }

    private static String required(String name) {
        String value = System.getenv(name);
        if (value == null || value.isEmpty()) {
            System.err.println("set " + name);
            System.exit(2);
        }
        return value;
    }
}
